//! The two figures of the method: a median, and a median of ratios.

/// The middle of `values`, or the mean of the two in the middle; `None` of nothing.
pub(crate) fn median(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let mut sorted: Vec<f64> = values.into_iter().collect();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    let upper = *sorted.get(middle)?;
    if sorted.len() % 2 == 1 {
        return Some(upper);
    }
    Some(f64::midpoint(sorted[middle - 1], upper))
}

/// The median of each round's own ratio. Both of a round meet the same machine,
/// so what slows one round down leaves its ratio alone.
pub(crate) fn median_ratio(pairs: impl IntoIterator<Item = (f64, f64)>) -> Option<f64> {
    let ratios = pairs.into_iter().filter(|&(_, base)| base > 0.0);
    median(ratios.map(|(value, base)| value / base))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_whatever_the_order() {
        assert_eq!(median([]), None);
        assert_eq!(median([7.0]), Some(7.0));
        assert_eq!(median([9.0, 1.0, 5.0]), Some(5.0));
        assert_eq!(median([9.0, 1.0, 5.0, 6.0]), Some(5.5));
        assert_eq!(median([1e6, 1.0, 1.0, 1.0, 1.0]), Some(1.0));
    }

    /// On a machine that becomes faster half-way the ratio of medians mixes the
    /// two halves: here it would say 5.5 / 2 for a subject always twice as fast.
    #[test]
    fn ratios_are_taken_within_a_round() {
        let rounds = [(2.0, 1.0), (20.0, 10.0), (2.2, 1.1), (40.0, 20.0), (5.5, 2.75)];
        assert_eq!(median_ratio(rounds), Some(2.0));
        assert_eq!(median_ratio([(2.0, 0.0)]), None);
        assert_eq!(median_ratio([]), None);
    }
}
