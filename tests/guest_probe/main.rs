//! Runs in the guest: serves vsock connections for the end-to-end tests, breaks the agent's, or tries file handles.
//!
//! `guest-probe cut-agent-stream` sends the beginning of a frame on the agent's own connection to the host and closes that.
//!
//! `guest-probe serve PORT` says `ready` and answers each connection by its first line: `give SEED BYTES` sends a
//! pseudo-random stream, `take SEED BYTES` reads one and says `same` or where it differs, `call PORT COUNT` opens and closes
//! COUNT connections to the host and says `called` or why not, `bye` ends the program.
//!
//! `guest-probe make-handles DIR COUNT LIST` makes files and lists their handles, `guest-probe check-handles DIR LIST` opens
//! them, see [`file_handles`].

mod agent_stream;
mod file_handles;

use std::env;
use std::io::{self, BufRead, BufReader, Write};
use std::process;
use std::thread;

use tests::stream::{Pattern, first_difference, send_pattern};
use vsock::{VMADDR_CID_ANY, VMADDR_CID_HOST, VsockListener, VsockStream};

const USAGE: &str =
    "usage: guest-probe serve PORT | cut-agent-stream | make-handles DIR COUNT LIST | check-handles DIR LIST";

fn main() {
    let args: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match words[..] {
        ["serve", port] => number(port).and_then(serve),
        ["cut-agent-stream"] => agent_stream::cut(),
        ["make-handles", dir, count, list] => count
            .parse()
            .map_err(io::Error::other)
            .and_then(|count| file_handles::make(dir.as_ref(), count, list.as_ref())),
        ["check-handles", dir, list] => file_handles::check(dir.as_ref(), list.as_ref()),
        _ => Err(io::Error::other(USAGE)),
    };
    if let Err(error) = done {
        eprintln!("guest-probe: {error}");
        process::exit(1);
    }
}

fn number(text: &str) -> io::Result<u32> {
    text.parse().map_err(io::Error::other)
}

fn serve(port: u32) -> io::Result<()> {
    let listener = VsockListener::bind_with_cid_port(VMADDR_CID_ANY, port)?;
    println!("ready");
    for connection in listener.incoming() {
        let connection = connection?;
        thread::spawn(move || {
            if let Err(error) = answer(connection) {
                println!("connection failed: {error}");
            }
        });
    }
    Ok(())
}

fn answer(connection: VsockStream) -> io::Result<()> {
    let mut reader = BufReader::with_capacity(64 << 10, &connection);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let words: Vec<&str> = line.split_whitespace().collect();
    match words[..] {
        // A connection that is opened and closed at once.
        [] => Ok(()),
        ["bye"] => process::exit(0),
        ["give", seed, bytes] => send_pattern(Pattern::new(number(seed)?), size(bytes)?, &mut &connection),
        ["take", seed, bytes] => {
            let verdict = match first_difference(Pattern::new(number(seed)?), size(bytes)?, &mut reader)? {
                None => "same\n".to_owned(),
                Some(difference) => format!("{difference:?}\n"),
            };
            // Also where it is not lost with a connection that is cut off.
            print!("{verdict}");
            (&connection).write_all(verdict.as_bytes())
        }
        ["call", port, count] => {
            let verdict = match call(number(port)?, number(count)?) {
                Ok(()) => "called\n".to_owned(),
                Err(error) => format!("not called: {error}\n"),
            };
            (&connection).write_all(verdict.as_bytes())
        }
        _ => Err(io::Error::other(format!("unknown request {line:?}"))),
    }
}

fn size(text: &str) -> io::Result<u64> {
    text.parse().map_err(io::Error::other)
}

fn call(port: u32, count: u32) -> io::Result<()> {
    for _ in 0..count {
        let mut stream = VsockStream::connect_with_cid_port(VMADDR_CID_HOST, port)?;
        stream.write_all(b"x")?;
    }
    Ok(())
}
