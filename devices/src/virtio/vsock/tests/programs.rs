use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixListener;

use super::*;

struct Program {
    stream: BufReader<UnixStream>,
}

impl Program {
    fn start(path: &std::path::Path, line: &str) -> Program {
        let mut stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(line.as_bytes()).unwrap();
        Program { stream: BufReader::new(stream) }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stream.read_line(&mut line).unwrap();
        line
    }
}

#[test]
fn a_program_connects_to_a_port_of_the_guest_by_saying_so() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vsock");
    let mut guest = Guest::start();
    let _exposed = guest.handle.expose(&path).unwrap();
    // What follows the line is for the guest.
    let mut program = Program::start(&path, "CONNECT 52\nhello guest");
    let request = guest.expect(Op::Request);
    assert_eq!(request.dst_port, 52);
    let mut socket = Socket::new(52, request.src_port);
    guest.send(socket.header(Op::Response), &[]);
    assert_eq!(program.line(), format!("OK {}\n", socket.host_port));
    assert_eq!(guest.next().1, b"hello guest");
    let packet = socket.data(b"hello program");
    guest.send(packet, b"hello program");
    let mut received = [0; 13];
    program.stream.read_exact(&mut received).unwrap();
    assert_eq!(&received, b"hello program");
    drop(program);
    assert_eq!(guest.expect(Op::Shutdown).flags, SHUTDOWN_BOTH);
    guest.send(socket.header(Op::Reset), &[]);
    guest.wait_connections(0);
}

#[test]
fn a_program_is_closed_when_the_guest_refuses_or_the_line_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vsock");
    let mut guest = Guest::start();
    let _exposed = guest.handle.expose(&path).unwrap();
    let mut program = Program::start(&path, "CONNECT 52\n");
    let request = guest.expect(Op::Request);
    guest.send(Socket::new(52, request.src_port).header(Op::Reset), &[]);
    assert_eq!(program.line(), "");
    let mut program = Program::start(&path, "DISCONNECT 52\n");
    // Closed with the line unread, which is an error for the other end.
    let mut buffer = [0; 1];
    let end = program.stream.read(&mut buffer);
    assert!(matches!(&end, Ok(0)) || end.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset));
    guest.expect_silence();
    guest.assert_works();
}

#[test]
fn a_program_that_says_nothing_or_leaves_early_harms_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vsock");
    let mut guest = Guest::start();
    let _exposed = guest.handle.expose(&path).unwrap();
    let _silent: Vec<Program> = (0..20).map(|_| Program::start(&path, "CONN")).collect();
    drop(Program::start(&path, ""));
    // Gone before the guest answers.
    drop(Program::start(&path, "CONNECT 52\n"));
    let request = guest.expect(Op::Request);
    let socket = Socket::new(52, request.src_port);
    guest.send(socket.header(Op::Response), &[]);
    loop {
        let (header, _) = guest.next();
        match Op::from_number(header.op) {
            Some(Op::Shutdown) if header.flags == SHUTDOWN_BOTH => break,
            Some(Op::Shutdown) => {}
            Some(Op::Reset) => break,
            other => panic!("{other:?}"),
        }
    }
    guest.send(socket.header(Op::Reset), &[]);
    guest.wait_connections(0);
    guest.assert_works();
}

#[test]
fn the_guest_reaches_a_program_that_listens_on_the_port_s_socket() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vsock");
    let mut guest = Guest::start();
    let _exposed = guest.handle.expose(&path).unwrap();
    guest.send(Socket::new(5, 99).header(Op::Request), &[]);
    guest.expect(Op::Reset);
    let program = UnixListener::bind(folder.path().join("vsock_99")).unwrap();
    let mut socket = guest.connect(5, 99);
    let (mut stream, _) = program.accept().unwrap();
    stream.write_all(b"served").unwrap();
    assert_eq!(guest.next().1, b"served");
    let packet = socket.data(b"thanks");
    guest.send(packet, b"thanks");
    let mut received = [0; 6];
    stream.read_exact(&mut received).unwrap();
    assert_eq!(&received, b"thanks");
    // A listener of this process comes first.
    let listener = guest.handle.listen(99);
    guest.connect_to(&listener, 6, 99);
}

#[test]
fn a_program_that_accepts_nothing_does_not_block_the_device() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vsock");
    let mut guest = Guest::start();
    let _exposed = guest.handle.expose(&path).unwrap();
    let program = UnixListener::bind(folder.path().join("vsock_99")).unwrap();
    rustix::net::listen(&program, 1).unwrap();
    let mut refused = false;
    for port in 0..10 {
        guest.send(Socket::new(port, 99).header(Op::Request), &[]);
        refused |= guest.next().0.op == Op::Reset as u16;
    }
    assert!(refused);
    guest.assert_works();
}

#[test]
fn an_exposed_socket_outlives_resets_and_serves_programs_that_came_before_the_driver() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vsock");
    let mut guest = Guest::start();
    let exposed = guest.handle.expose(&path).unwrap();
    guest.reset();
    let mut program = Program::start(&path, "CONNECT 7\n");
    guest.activate(32);
    let request = guest.expect(Op::Request);
    guest.send(Socket::new(7, request.src_port).header(Op::Response), &[]);
    assert_eq!(program.line(), format!("OK {}\n", request.src_port));
    // Another name of the socket tells whether it is closed.
    let other_name = folder.path().join("other");
    std::fs::hard_link(&path, &other_name).unwrap();
    drop(exposed);
    assert!(!path.exists());
    let deadline = Instant::now() + PATIENCE;
    while UnixStream::connect(&other_name).is_ok() {
        assert!(Instant::now() < deadline, "the socket is still open");
        std::thread::sleep(Duration::from_millis(1));
    }
    // Its connections stay.
    program.stream.get_mut().write_all(b"x").unwrap();
    assert_eq!(guest.next().1, b"x");
}

#[test]
fn a_path_in_use_is_an_error_that_says_so_and_no_foreign_file_is_removed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vsock");
    let guest = Guest::start();
    let exposed = guest.handle.expose(&path).unwrap();
    let error = guest.handle.expose(&path).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::AddrInUse);
    assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "somebody else's").unwrap();
    drop(exposed);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "somebody else's");
    let error = guest.handle.expose("/nowhere/vsock").err().unwrap();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let long = folder.path().join("x".repeat(200));
    assert!(guest.handle.expose(long).is_err());
}

#[test]
fn a_path_too_long_for_the_port_s_socket_refuses() {
    let folder = tempfile::tempdir().unwrap();
    // sun_path has 108 bytes; leave room for the path itself and none for the port.
    let room = 107 - folder.path().as_os_str().len() - 1;
    let path = folder.path().join("x".repeat(room));
    let mut guest = Guest::start();
    let _exposed = guest.handle.expose(&path).unwrap();
    guest.send(Socket::new(5, 99).header(Op::Request), &[]);
    guest.expect(Op::Reset);
    guest.assert_works();
}
