//! From a request to its reply.
//!
//! Most requests go to fuse-backend-rs's `Server`, which decodes them and calls [`PassthroughFs`]. What it does not know,
//! or would answer in a way the guest cannot use, is decoded in `requests`. Opcodes nobody knows never reach `Server`.
//! What may take long (syncing, copying and allocating a lot, waiting for a lock) is answered by another thread.
//!
//! What comes out is the used length of the chain, which is the reply's `len` without exception: Linux 7.1 and newer
//! checks that.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use fuse_backend_rs::abi::fuse_abi::{InHeader, InterruptIn};
use fuse_backend_rs::api::server::Server;
use fuse_backend_rs::transport::Writer;

use super::body::{Body, MALFORMED};
use super::chain::{OUT_HEADER_SIZE, Request};
use super::constants::{init_flag, opcode};
use super::deferred::{Answer, Ticket};
use super::lock_waits::LockWaits;
use super::passthrough::{PassthroughFs, errno};
use super::requests::Slow;
use super::slow_pool::SlowPool;

/// What becomes of a chain.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It is returned with this used length.
    Used(u32),
    /// It is returned when its ticket is answered.
    Deferred,
    /// The driver broke the protocol in a way that no reply can tell it: the device has to stop.
    Unanswerable(String),
}

/// One share's server, used by all its queues at once.
pub(super) struct FuseServer {
    pub(super) fs: Arc<PassthroughFs>,
    server: Server<Arc<PassthroughFs>>,
    pub(super) in_session: AtomicBool,
    pool: SlowPool,
    lock_waits: LockWaits,
    #[cfg(feature = "planted-bugs")]
    pub(super) planted: Option<super::planted_bugs::Planted>,
}

impl FuseServer {
    /// A server whose own threads have names that begin with `name`.
    pub(super) fn new(name: &str, fs: PassthroughFs) -> Self {
        let fs = Arc::new(fs);
        FuseServer {
            server: Server::new(fs.clone()),
            fs,
            in_session: AtomicBool::new(false),
            pool: SlowPool::new(format!("{name} slow")),
            lock_waits: LockWaits::new(format!("{name} lock")),
            #[cfg(feature = "planted-bugs")]
            planted: None,
        }
    }

    /// Ends the session, if there is one: the next request has to be INIT.
    pub(super) fn end_session(&self) {
        if self.in_session.swap(false, Ordering::AcqRel) {
            let (nodes, handles) = self.fs.usage();
            tracing::debug!("session ends with {nodes} inodes known and {handles} files open");
        }
        self.lock_waits.interrupt_all();
        self.fs.end_session();
    }

    /// Forgets slow requests that were not begun: there is nobody any more to answer.
    pub(super) fn abandon(&self) {
        self.pool.clear();
        self.end_session();
    }

    /// Serves one request. One that may take long is answered later by a ticket; without one (`None`: too many are
    /// unanswered already) it is served at once.
    pub(super) fn serve(&self, request: &Request<'_>, ticket: impl FnOnce() -> Option<Ticket>) -> Outcome {
        #[cfg(feature = "planted-bugs")]
        if let Some(planted) = &self.planted {
            return planted.serve(self, request, ticket);
        }
        self.serve_soundly(request, ticket)
    }

    /// [`FuseServer::serve`], with no other faults than its own.
    pub(super) fn serve_soundly(&self, request: &Request<'_>, ticket: impl FnOnce() -> Option<Ticket>) -> Outcome {
        let code = request.header.opcode;
        let answered =
            !matches!(code, opcode::FORGET | opcode::BATCH_FORGET | opcode::INTERRUPT | opcode::NOTIFY_REPLY);
        if answered && request.writable < OUT_HEADER_SIZE {
            let room = request.writable;
            return Outcome::Unanswerable(format!("request with opcode {code} leaves {room} bytes for a reply"));
        }
        let len = request.header.len as usize;
        let well_formed = (size_of::<InHeader>()..=request.readable).contains(&len);
        let in_session = self.in_session.load(Ordering::Acquire);
        if !answered {
            if well_formed && in_session {
                self.serve_unanswered(request);
            }
            return Outcome::Used(0);
        }
        if !well_formed || (!in_session && code != opcode::INIT) {
            return self.finish(request, Err(errno(MALFORMED)));
        }
        if let Some(slow) = self.slow(request) {
            return match slow {
                Ok(slow) => self.serve_slow(request, slow, ticket),
                Err(error) => self.finish(request, Err(error)),
            };
        }
        let outcome = match self.own(request) {
            Some(reply) => self.finish(request, reply),
            None if is_forwarded(code) => match self.forward(request) {
                Some(used) => Outcome::Used(used),
                None => self.finish(request, Err(errno(MALFORMED))),
            },
            None => self.finish(request, Err(errno(libc::ENOSYS))),
        };
        // Somebody on the host may have made a file longer.
        self.fs.restore_zeros();
        // A lock may have been given back.
        let unlocks = matches!(code, opcode::FLUSH | opcode::RELEASE | opcode::RELEASEDIR | opcode::SETLK);
        if unlocks && self.fs.has(init_flag::POSIX_LOCKS) {
            self.lock_waits.try_again();
        }
        outcome
    }

    /// Answers a request with an errno instead of serving it.
    pub(super) fn refuse(&self, request: &Request<'_>, error: i32) -> Outcome {
        self.finish(request, Err(errno(error)))
    }

    fn serve_unanswered(&self, request: &Request<'_>) {
        match request.header.opcode {
            opcode::FORGET | opcode::BATCH_FORGET => {
                self.forward(request);
            }
            // Only waiting for a lock can be interrupted; nothing else takes longer than the disk.
            opcode::INTERRUPT => {
                if let Ok(InterruptIn { unique }) = Body::new(request).and_then(|mut body| body.object()) {
                    self.lock_waits.interrupt(unique);
                }
            }
            _ => {}
        }
    }

    fn serve_slow(&self, request: &Request<'_>, slow: Slow, ticket: impl FnOnce() -> Option<Ticket>) -> Outcome {
        match slow {
            Slow::Now(job) => return self.finish(request, job()),
            Slow::Later(job) => match ticket() {
                Some(ticket) => self.pool.run(job, ticket),
                None => return self.finish(request, job()),
            },
            Slow::Lock(lock) => match lock.attempt() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => match ticket() {
                    Some(ticket) => self.lock_waits.add(request.header.unique, lock, ticket),
                    None => return self.finish(request, Err(errno(libc::ENOLCK))),
                },
                result => {
                    if lock.unlocks() {
                        self.lock_waits.try_again();
                    }
                    return self.finish(request, result.map(|()| Vec::new()));
                }
            },
        }
        Outcome::Deferred
    }

    /// Lets fuse-backend-rs serve a request; `None` when it gave up on it.
    fn forward(&self, request: &Request<'_>) -> Option<u32> {
        let (reader, writer) = (request.reader().ok()?, request.writer().ok()?);
        match self.server.handle_message(reader, Writer::VirtioFs(writer), None, None) {
            Ok(used) => u32::try_from(used).ok(),
            Err(error) => {
                tracing::debug!("request with opcode {} refused: {error}", request.header.opcode);
                None
            }
        }
    }

    /// Writes the reply to a request that was decoded here.
    fn finish(&self, request: &Request<'_>, reply: Answer) -> Outcome {
        let used = match &reply {
            Ok(body) => request.reply(0, &[body]),
            Err(error) => request.reply(error.raw_os_error().unwrap_or(libc::EIO), &[]),
        };
        // A reply that does not fit becomes an error, which does unless the buffers lie outside of guest memory.
        match used.or_else(|| request.reply(MALFORMED, &[])) {
            Some(used) => Outcome::Used(used),
            None => Outcome::Unanswerable(format!(
                "request with opcode {} has a reply buffer outside of guest memory",
                request.header.opcode
            )),
        }
    }
}

/// Opcodes that fuse-backend-rs's server decodes. A list, so that what is unknown is ENOSYS here: its own conversion from
/// numbers has gaps.
fn is_forwarded(code: u32) -> bool {
    use fuse_backend_rs::abi::fuse_abi::Opcode as O;
    const FORWARDED: [O; 24] = [
        O::Lookup,
        O::Setattr,
        O::Readlink,
        O::Unlink,
        O::Rmdir,
        O::Rename,
        O::Link,
        O::Open,
        O::Read,
        O::Write,
        O::Statfs,
        O::Release,
        O::Getxattr,
        O::Listxattr,
        O::Removexattr,
        O::Flush,
        O::Opendir,
        O::Readdir,
        O::Releasedir,
        O::Access,
        O::Bmap,
        O::Poll,
        O::Readdirplus,
        O::Lseek,
    ];
    FORWARDED.iter().any(|known| *known as u32 == code)
}
