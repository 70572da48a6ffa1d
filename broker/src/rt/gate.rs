//! Waiting for everything under way to end. Used before files are closed and a shard's executor ends: an executor
//! that ends drops the I/O it has not handed to the kernel yet, without an error.

use super::Signal;
use std::cell::Cell;
use std::rc::Rc;

/// Counts the work under way.
#[derive(Clone, Debug, Default)]
pub struct Gate(Rc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    under_way: Cell<usize>,
    idle: Signal,
}

/// One piece of work; it ends when this is dropped.
#[derive(Debug)]
pub struct Pass(Rc<Inner>);

impl Gate {
    /// Counts a piece of work in.
    #[must_use]
    pub fn enter(&self) -> Pass {
        self.0.under_way.set(self.0.under_way.get() + 1);
        Pass(Rc::clone(&self.0))
    }

    /// Pieces of work under way.
    #[must_use]
    pub fn under_way(&self) -> usize {
        self.0.under_way.get()
    }

    /// Waits until nothing is under way. One task at a time may wait.
    pub async fn idle(&self) {
        while self.0.under_way.get() > 0 {
            self.0.idle.wait().await;
        }
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let left = self.0.under_way.get() - 1;
        self.0.under_way.set(left);
        if left == 0 {
            self.0.idle.notify();
        }
    }
}
