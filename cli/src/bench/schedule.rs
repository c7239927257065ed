//! Requests that are known beforehand, each with its moment.

use std::time::Duration;

use super::workload::Op;

/// What to request and when, in that order.
pub(crate) struct Schedule {
    requests: std::vec::IntoIter<(Duration, Op)>,
    /// How much faster than it says; `None` as fast as the device goes.
    speed: Option<f64>,
}

impl Schedule {
    /// The requests at their moments after the start, divided by `speed`.
    pub(crate) fn new(mut requests: Vec<(Duration, Op)>, speed: Option<f64>) -> Self {
        requests.sort_by_key(|(due, _)| *due);
        Self { requests: requests.into_iter(), speed }
    }

    pub(crate) fn next(&mut self) -> Option<Op> {
        self.requests.next().map(|(_, op)| op)
    }

    /// When the next request is meant to start; `None` means at once.
    pub(crate) fn next_due(&self) -> Option<Duration> {
        let (due, _) = self.requests.as_slice().first()?;
        Some(due.div_f64(self.speed?))
    }
}

#[cfg(test)]
mod tests {
    use super::super::workload::{Kind, Span};
    use super::*;

    #[test]
    fn requests_come_when_they_came_and_faster_when_told_to() {
        let at = |millis| Duration::from_millis(millis);
        let op = |first| Op { kind: Kind::Read, span: Span { first, count: 1 } };
        let requests = vec![(at(30), op(3)), (at(10), op(1)), (at(20), op(2))];
        let mut twice = Schedule::new(requests.clone(), Some(2.0));
        for (due, first) in [(5, 1), (10, 2), (15, 3)] {
            assert_eq!(twice.next_due(), Some(at(due)));
            assert_eq!(twice.next(), Some(op(first)));
        }
        assert_eq!((twice.next_due(), twice.next()), (None, None));
        assert_eq!(Schedule::new(requests, None).next_due(), None);
    }
}
