//! The `vmm` binary: parse, run the subcommand, print one error, leave with its code.

use std::process::ExitCode as ProcessExit;

use vmm::cli::Cli;
use vmm::command;
use vmm::exit_code::ExitCode;

fn main() -> ProcessExit {
    let cli = match Cli::try_parse_with_suite_flags(std::env::args_os().collect()) {
        Ok(cli) => cli,
        // Clap prints help and version to standard output with 0, everything else to standard error with 2.
        Err(error) => error.exit(),
    };
    start_log(cli.verbose);
    match command::dispatch(cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("vmm: {error:#}");
            ExitCode::of(&error).into()
        }
    }
}

fn start_log(verbose: u8) {
    let default = match verbose {
        // The FUSE library logs what a guest sends wrong as an error; a guest must not be able to fill our log.
        0 => "warn,fuse_backend_rs=off",
        1 => "info,fuse_backend_rs=off",
        _ => "debug",
    };
    let filter = tracing_subscriber::EnvFilter::try_from_env("VMM_LOG").unwrap_or_else(|_| default.into());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .without_time()
        .init();
}
