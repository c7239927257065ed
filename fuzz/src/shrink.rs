//! A failing input, made small.

/// How many inputs are tried for it.
const ATTEMPTS: usize = 400;

/// The smallest input found that still fails, and why it does. `fails` says why
/// an input fails, if it does.
pub(crate) fn smallest(
    input: &[u8],
    why: &str,
    mut fails: impl FnMut(&[u8]) -> Option<String>,
) -> (Vec<u8>, String) {
    let (mut best, mut why) = (input.to_vec(), why.to_owned());
    let mut left = ATTEMPTS;
    let mut step = best.len().div_ceil(2);
    while step > 0 {
        let mut at = 0;
        while at < best.len() && left > 0 {
            let end = best.len().min(at + step);
            let without = [&best[..at], &best[end..]].concat();
            let mut zeroed = best.clone();
            zeroed[at..end].fill(0);
            let smaller = [without, zeroed].into_iter().find_map(|smaller| {
                if smaller == best {
                    return None;
                }
                left = left.saturating_sub(1);
                fails(&smaller).map(|why| (smaller, why))
            });
            match smaller {
                Some((smaller, because)) => {
                    at += if smaller.len() == best.len() { step } else { 0 };
                    (best, why) = (smaller, because);
                }
                None => at += step,
            }
        }
        step /= 2;
    }
    (best, why)
}
