//! What a model of threads that wake each other needs (loom).

use loom::sync::{Condvar, Mutex};

/// An eventfd: it stays rung until somebody waited for it.
#[derive(Default)]
pub(crate) struct Bell {
    rung: Mutex<bool>,
    news: Condvar,
}

impl Bell {
    pub(crate) fn ring(&self) {
        *self.rung.lock().expect("no panic") = true;
        self.news.notify_one();
    }

    pub(crate) fn wait(&self) {
        let mut rung = self.rung.lock().expect("no panic");
        while !*rung {
            rung = self.news.wait(rung).expect("no panic");
        }
        *rung = false;
    }
}

/// Every order with at most this many switches between threads at places where none
/// of them has to wait. A lost wake-up takes one or two.
pub(crate) fn model(run: impl Fn() + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(run);
}
