//! How often a program asks the heap for memory: what is done for each request must not.
//!
//! For tests and benches, which make [`Counting`] their allocator:
//!
//! ```
//! #[global_allocator]
//! static ALLOCATOR: allocations::Counting = allocations::Counting;
//!
//! let before = allocations::of_this_thread();
//! drop(std::hint::black_box(Box::new(7)));
//! assert_eq!(allocations::of_this_thread() - before, 1);
//! ```

mod sys;

pub use sys::{Counting, of_all_threads, of_this_thread};

#[cfg(test)]
mod tests {
    use std::hint::black_box;

    use super::*;

    #[global_allocator]
    static ALLOCATOR: Counting = Counting;

    #[test]
    fn new_memory_and_more_of_it_count_and_giving_back_does_not() {
        let begun = of_this_thread();
        let mut bytes = black_box(Vec::<u8>::with_capacity(8));
        assert_eq!(of_this_thread() - begun, 1);
        bytes.reserve_exact(100);
        assert_eq!(of_this_thread() - begun, 2);
        drop(black_box(bytes));
        assert_eq!(of_this_thread() - begun, 2);
        drop(black_box(vec![0u8; 64]));
        assert_eq!(of_this_thread() - begun, 3, "zeroed memory is memory");
    }

    #[test]
    fn what_another_thread_takes_is_its_own() {
        let (all, own) = (of_all_threads(), of_this_thread());
        std::thread::scope(|scope| {
            let other = scope.spawn(|| {
                let begun = of_this_thread();
                (0..1000).for_each(|number| drop(black_box(Box::new(number))));
                of_this_thread() - begun
            });
            assert_eq!(other.join().expect("it ends"), 1000);
        });
        assert!(of_all_threads() - all >= 1000);
        // To start a thread takes some.
        assert!(of_this_thread() - own < 1000);
    }
}
