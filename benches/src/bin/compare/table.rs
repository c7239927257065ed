//! The report for people.

use std::fmt::{self, Display};

use crate::goals;
use crate::report::{CellReport, Report, Row};
use crate::workload::Cell;

/// Prints as a table for each workload.
pub(crate) struct Table<'a>(pub(crate) &'a Report);

impl Display for Table<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { machine, seconds, client_cpu, subject_cpu, disk_bytes, .. } = self.0;
        writeln!(out, "{}, {} cores, Linux {}", machine.processor, machine.cores, machine.kernel)?;
        writeln!(
            out,
            "{} MiB disks; client polls core {client_cpu}, all else on core {subject_cpu}; \
             medians over rounds of {seconds} s, \"x\" is the median of the rounds' ratios, \
             of IOPS, and at a given rate of p50",
            disk_bytes >> 20
        )?;
        self.0.skipped.iter().try_for_each(|sentence| writeln!(out, "SKIPPED {sentence}"))?;
        self.0.cells.iter().try_for_each(|cell| write_cell(out, cell))?;
        self.0.asleep.iter().try_for_each(|one| writeln!(out, "\n{one}"))?;
        goals::judge(self.0).iter().try_for_each(|line| writeln!(out, "{line}"))
    }
}

fn write_cell(out: &mut fmt::Formatter<'_>, cell: &CellReport) -> fmt::Result {
    let CellReport { rounds_kept, rounds_dropped, rounds_disturbed, rows, .. } = cell;
    let plural = if *rounds_kept == 1 { "" } else { "s" };
    write!(out, "\n{}: {rounds_kept} round{plural}", cell.cell.title())?;
    if *rounds_dropped > 0 {
        write!(out, ", {rounds_dropped} dropped because the machine was busy")?;
    }
    if *rounds_disturbed > 0 {
        write!(out, ", {rounds_disturbed} OF THEM ON A BUSY MACHINE")?;
    }
    writeln!(out)?;
    write!(out, "  {:<18} {:>9} {:>8} {:>8}", "", "IOPS", "p50 us", "p99 us")?;
    if cell.cell.saturates() {
        write!(out, " {:>19}", "CPU us client+rest")?;
    }
    for ratio in rows.first().map_or(&[][..], |row| &row.ratios) {
        write!(out, "  x {}", ratio.to)?;
    }
    writeln!(out)?;
    rows.iter().try_for_each(|row| write_row(out, row, &cell.cell))
}

fn write_row(out: &mut fmt::Formatter<'_>, row: &Row, cell: &Cell) -> fmt::Result {
    write!(out, "  {:<18}", row.subject)?;
    let Some(median) = row.median else { return writeln!(out, " no round counts") };
    write!(out, " {:>9.0} {:>8.1} {:>8.1}", median.iops, median.p50_us, median.p99_us)?;
    if cell.saturates() {
        let both = format!("{:.1}+{:.1}", median.client_cpu_us, median.service_cpu_us);
        write!(out, " {both:>19}")?;
    }
    for ratio in &row.ratios {
        let width = ratio.to.len() + 4;
        // Whoever keeps up with a rate has that rate.
        match if cell.rate.is_some() { ratio.p50 } else { ratio.iops } {
            Some(times) => write!(out, "{times:>width$.2}")?,
            None => write!(out, "{:>width$}", "-")?,
        }
    }
    writeln!(out)
}
