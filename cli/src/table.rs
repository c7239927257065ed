//! Columns that line up, as wide as they need to be.

/// Where a column's texts stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// Words.
    Left,
    /// Figures.
    Right,
}

/// A line for the heads and one for each row.
pub(crate) fn table<const N: usize>(heads: [(&str, Side); N], rows: &[[String; N]]) -> String {
    let wide = |column: usize| {
        let widths = rows.iter().map(|row| row[column].chars().count());
        widths.chain([heads[column].0.len()]).max().unwrap_or(0)
    };
    let widths: [usize; N] = std::array::from_fn(wide);
    let line = |row: &[String; N]| {
        let cells =
            row.iter().zip(&widths).zip(&heads).map(|((text, width), (_, side))| match side {
                Side::Left => format!("{text:width$}"),
                Side::Right => format!("{text:>width$}"),
            });
        format!("{}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
    };
    let head: [String; N] = std::array::from_fn(|column| heads[column].0.to_owned());
    std::iter::once(&head).chain(rows).map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_whatever_is_in_them() {
        let rows = [["ä".to_owned(), "1".to_owned()], ["long".to_owned(), "1000".to_owned()]];
        let text = table([("N", Side::Left), ("F", Side::Right)], &rows);
        assert_eq!(text, "N        F\nä        1\nlong  1000\n");
    }
}
