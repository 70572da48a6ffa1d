//! Takes connections from the shard's listening socket.
//!
//! One task per shard that lives as long as the socket: an accept that is given up half-way would lose the connection.
//! Invariant: a refusal of the system (no descriptors, no memory) is waited out, never spun on.

use super::Inner;
use super::config::{ACCEPT_PAUSE_MAX, ACCEPT_PAUSE_MIN};
use super::socket::accept;
use crate::rt::{self, Watch};
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;

impl Inner {
    pub(super) async fn accept_forever(self: Rc<Self>, listener: Rc<OwnedFd>) {
        let mut pause = ACCEPT_PAUSE_MIN;
        let mut watch = None;
        while !self.draining.get() {
            let accepted = match accept(&listener) {
                Ok(None) => self.acceptable(&listener, &mut watch).await,
                Ok(Some(descriptor)) => {
                    self.metrics.accepted.add(1);
                    self.admit(descriptor, None);
                    pause = ACCEPT_PAUSE_MIN;
                    rt::yield_if_needed().await;
                    Ok(())
                }
                Err(error) => Err(error),
            };
            if accepted.is_err() && !self.draining.get() {
                self.metrics.accept_faults.add(1);
                rt::sleep(pause).await;
                pause = (2 * pause).min(ACCEPT_PAUSE_MAX);
            }
        }
    }

    /// Waits until there may be a connection to accept, or the socket is shut down.
    async fn acceptable(&self, listener: &Rc<OwnedFd>, watch: &mut Option<Watch>) -> io::Result<()> {
        if let Some(watch) = watch {
            watch.was_emptied();
            return watch.readable().await;
        }
        // It begins as one that is worth a try, so nothing that came meanwhile is missed.
        *watch = Some(self.ring.watch(Rc::clone(listener))?);
        Ok(())
    }
}
