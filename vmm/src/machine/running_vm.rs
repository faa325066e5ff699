//! A machine that runs: sole owner of its threads, and the way to end it.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded};
use devices::virtio::vsock::{ExposedSocket, VsockHandle};

use super::StopReason;
use super::flight::Flight;
use super::inspection::{Inspection, Inspector};
use super::pci_devices::{self, SharedVirtioDevice};
use super::statistics::StatisticsReader;
use super::stopper::Stopper;
use super::vcpu::VcpuThread;
use super::vcpu_stats::VcpuStats;

/// How long [`Drop`] waits for each group of threads.
const DROP_DEADLINE: Duration = Duration::from_secs(10);

/// A running machine. Dropping it stops it.
pub struct RunningVm {
    pub(super) stopper: Arc<Stopper>,
    pub(super) stopped: Receiver<StopReason>,
    pub(super) inspection: Arc<Inspection>,
    pub(super) vcpus: Vec<VcpuThread>,
    pub(super) stats: StatisticsReader,
    pub(super) flight: Flight,
    pub(super) devices: Vec<SharedVirtioDevice>,
    pub(super) vsock: VsockHandle,
    /// Removes the socket file when the machine is gone.
    #[expect(dead_code, reason = "held for its Drop")]
    pub(super) exposed_vsock: Option<ExposedSocket>,
}

impl RunningVm {
    /// Gets exactly one message: the first reason the machine stopped for.
    #[must_use]
    pub fn stopped(&self) -> &Receiver<StopReason> {
        &self.stopped
    }

    /// The guest's vsock connections to CID 2, port `port`, as blocking streams. A later call takes the port over.
    #[must_use]
    pub fn listen(&self, port: u32) -> mpsc::Receiver<UnixStream> {
        self.vsock.listen(port)
    }

    /// Connects to vsock port `port` of the guest.
    ///
    /// # Errors
    /// Nobody listens there, the guest does not answer, or its driver does not run.
    pub fn connect(&self, port: u32) -> io::Result<UnixStream> {
        self.vsock.connect(port)
    }

    /// KVM's counters of each vCPU, by index; empty where KVM has none.
    #[must_use]
    pub fn vcpu_stats(&self) -> &[VcpuStats] {
        &self.stats.vcpus
    }

    /// Where to read what the shares served last and have not answered yet, also when the machine has stopped.
    #[must_use]
    pub fn flight(&self) -> Flight {
        self.flight.clone()
    }

    /// Looks at its vCPUs, also when it has stopped.
    #[must_use]
    pub fn inspector(&self) -> Inspector {
        Inspector { inspection: self.inspection.clone(), stopper: self.stopper.clone() }
    }

    /// Where to read what the machine costs, also when it has stopped.
    #[must_use]
    pub fn statistics(&self) -> StatisticsReader {
        self.stats.clone()
    }

    /// Stops the machine whatever its guest does, and says why it stopped: [`StopReason::Requested`] if it was still
    /// running. vCPUs leave the guest, then devices stop their workers. A thread that does not end within `deadline`
    /// (blocked in the host kernel) is left behind and logged; the call returns all the same.
    pub fn stop(mut self, deadline: Duration) -> StopReason {
        self.end(Instant::now() + deadline)
    }

    fn end(&mut self, deadline: Instant) -> StopReason {
        self.stopper.stop(StopReason::Requested);
        for vcpu in self.vcpus.drain(..) {
            let name = vcpu.name.clone();
            if !vcpu.join_until(deadline) {
                tracing::error!("thread {name} does not end; it is left behind");
            }
        }
        self.reset_devices(deadline);
        self.stopper.reason().cloned().unwrap_or(StopReason::Requested)
    }

    /// On a thread of its own: a vCPU that was left behind may hold a device's lock for ever.
    fn reset_devices(&mut self, deadline: Instant) {
        let devices = std::mem::take(&mut self.devices);
        if devices.is_empty() {
            return;
        }
        let (alive, ended) = bounded::<()>(0);
        let body = move || {
            let _alive = alive;
            pci_devices::reset_all(&devices);
        };
        match std::thread::Builder::new().name("teardown".to_owned()).spawn(body) {
            Ok(thread) => match ended.recv_deadline(deadline) {
                Err(crossbeam_channel::RecvTimeoutError::Timeout) => {
                    tracing::error!("a device does not stop; its workers are left behind");
                }
                _ => drop(thread.join()),
            },
            Err(error) => tracing::error!("devices are not stopped, no thread can be started: {error}"),
        }
    }
}

impl Drop for RunningVm {
    fn drop(&mut self) {
        self.end(Instant::now() + DROP_DEADLINE);
    }
}
