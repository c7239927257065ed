//! Figures under their names.

use prometheus::TextEncoder;
use prometheus::proto::{
    Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType,
};

/// What tells figures of one name apart: names and values.
pub(super) type Labels<'a> = &'a [(&'a str, &'a str)];

/// How long things took.
pub(super) struct Durations {
    /// How many.
    pub(super) count: u64,
    /// All of them, one after the other, in seconds.
    pub(super) sum: f64,
    /// Seconds, and how many did not take longer.
    pub(super) buckets: Vec<(f64, u64)>,
}

/// Figures, as they will be read.
#[derive(Debug, Default)]
pub(super) struct Page {
    families: Vec<MetricFamily>,
}

impl Page {
    /// What goes up and down.
    pub(super) fn gauge<'a>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Labels<'a>, f64)>,
    ) {
        let metric = |value| {
            let (mut metric, mut gauge) = (Metric::default(), Gauge::default());
            gauge.set_value(value);
            metric.set_gauge(gauge);
            metric
        };
        self.add(MetricType::GAUGE, name, help, samples, metric);
    }

    /// What only rises.
    pub(super) fn counter<'a>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Labels<'a>, f64)>,
    ) {
        debug_assert!(name.ends_with("_total"), "{name}");
        let metric = |value| {
            let (mut metric, mut counter) = (Metric::default(), Counter::default());
            counter.set_value(value);
            metric.set_counter(counter);
            metric
        };
        self.add(MetricType::COUNTER, name, help, samples, metric);
    }

    /// How long things took.
    pub(super) fn histogram<'a>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Labels<'a>, Durations)>,
    ) {
        let bucket = |(upper, count)| {
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(upper);
            bucket.set_cumulative_count(count);
            bucket
        };
        let metric = |durations: Durations| {
            let (mut metric, mut histogram) = (Metric::default(), Histogram::default());
            histogram.set_sample_count(durations.count);
            histogram.set_sample_sum(durations.sum);
            histogram.set_bucket(durations.buckets.into_iter().map(bucket).collect());
            metric.set_histogram(histogram);
            metric
        };
        self.add(MetricType::HISTOGRAM, name, help, samples, metric);
    }

    /// What has no sample is left out: the format has no such thing.
    fn add<'a, T>(
        &mut self,
        kind: MetricType,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Labels<'a>, T)>,
        metric: impl Fn(T) -> Metric,
    ) {
        let samples = samples.into_iter().map(|(labels, value)| {
            let mut metric = metric(value);
            metric.set_label(labels.iter().map(pair).collect());
            metric
        });
        let samples: Vec<Metric> = samples.collect();
        if samples.is_empty() {
            return;
        }
        let mut family = MetricFamily::default();
        family.set_name(name.to_owned());
        family.set_help(help.to_owned());
        family.set_field_type(kind);
        family.set_metric(samples);
        self.families.push(family);
    }

    pub(super) fn text(&self) -> Result<String, prometheus::Error> {
        TextEncoder::new().encode_to_string(&self.families)
    }
}

fn pair(&(name, value): &(&str, &str)) -> LabelPair {
    let mut pair = LabelPair::default();
    pair.set_name(name.to_owned());
    pair.set_value(value.to_owned());
    pair
}
