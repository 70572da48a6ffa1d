//! OpenMetrics text, as far as it is numbers with names and labels.

use std::collections::BTreeMap;
use std::time::Instant;

/// Numbers by name, each with its labels.
#[derive(Debug)]
pub(super) struct Sample {
    pub(super) at: Instant,
    numbers: BTreeMap<String, Vec<(Labels, f64)>>,
}

/// Labels by name.
pub(super) type Labels = BTreeMap<String, String>;

impl Sample {
    /// Reads what can be read; a line that cannot is left out.
    pub(super) fn parse(text: &str) -> Self {
        let mut numbers: BTreeMap<String, Vec<(Labels, f64)>> = BTreeMap::new();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            if let Some((name, labels, number)) = number(line) {
                numbers.entry(name.to_owned()).or_default().push((labels, number));
            }
        }
        Self { at: Instant::now(), numbers }
    }

    /// All numbers of a name.
    pub(super) fn all(&self, name: &str) -> &[(Labels, f64)] {
        self.numbers.get(name).map_or(&[], Vec::as_slice)
    }

    /// The sum of those that have these labels; 0 if there is none.
    pub(super) fn sum(&self, name: &str, with: &[(&str, &str)]) -> f64 {
        let numbers = self.all(name).iter().filter(|(labels, _)| has(labels, with));
        // The sum of nothing is negative zero otherwise.
        numbers.fold(0.0, |sum, (_, number)| sum + number)
    }

    /// The values of a label, each once, in order.
    pub(super) fn values(&self, name: &str, label: &str) -> Vec<String> {
        let values = self.all(name).iter().filter_map(|(labels, _)| labels.get(label));
        values.collect::<std::collections::BTreeSet<_>>().into_iter().cloned().collect()
    }

    /// The upper bound of the bucket in which a share of what a histogram has counted since `before` ends; none if it has
    /// counted nothing.
    pub(super) fn quantile(
        &self,
        before: &Self,
        name: &str,
        with: &[(&str, &str)],
        share: f64,
    ) -> Option<f64> {
        let mut buckets: BTreeMap<u64, (f64, f64)> = BTreeMap::new();
        for (sample, sign) in [(self, 1.0), (before, -1.0)] {
            for (labels, count) in sample.all(name).iter().filter(|(labels, _)| has(labels, with)) {
                let bound: f64 = labels.get("le").and_then(|le| le.parse().ok()).unwrap_or(f64::INFINITY);
                // Bounds are positive, so their bits rise with them.
                buckets.entry(bound.to_bits()).or_insert((bound, 0.0)).1 += sign * count;
            }
        }
        let total = buckets.values().next_back().map_or(0.0, |(_, count)| *count);
        let found = buckets.values().find(|(_, count)| total > 0.0 && *count >= share * total);
        found.map(|(bound, _)| *bound)
    }
}

fn has(labels: &Labels, with: &[(&str, &str)]) -> bool {
    with.iter().all(|(name, value)| labels.get(*name).is_some_and(|found| found == value))
}

/// `name{label="value",...} number`, or without labels.
fn number(line: &str) -> Option<(&str, Labels, f64)> {
    let end = line.find(['{', ' '])?;
    let (name, mut rest) = line.split_at(end);
    let mut labels = Labels::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        while !rest.starts_with('}') {
            let (label, after) = rest.split_once("=\"")?;
            let (value, after) = quoted(after)?;
            labels.insert(label.trim_start_matches(',').to_owned(), value);
            rest = after;
        }
        rest = &rest[1..];
    }
    let number = rest.split_whitespace().next()?.parse().ok()?;
    Some((name, labels, number))
}

/// A value up to its closing quote, and what follows.
fn quoted(text: &str) -> Option<(String, &str)> {
    let (mut value, mut chars) = (String::new(), text.char_indices());
    while let Some((at, character)) = chars.next() {
        match character {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => value.push(match chars.next()?.1 {
                'n' => '\n',
                other => other,
            }),
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::Sample;

    #[test]
    fn numbers_are_found_by_name_and_labels() {
        let sample = Sample::parse(
            "# TYPE a counter\na_total{shard=\"0\"} 3\na_total{shard=\"1\",kind=\"x\\\"y\"} 4.5\nplain 7 1700\nbroken{\nx{a=\"b} 1\nnan NaN\n",
        );
        let sum = |name, with: &[(&str, &str)]| sample.sum(name, with).to_string();
        assert_eq!(sum("a_total", &[]), "7.5");
        assert_eq!(sum("a_total", &[("kind", "x\"y")]), "4.5");
        assert_eq!(sum("plain", &[]), "7");
        assert_eq!(sum("none", &[]), "0");
        assert_eq!(sample.values("a_total", "shard"), ["0", "1"]);
        assert!(sample.all("broken").is_empty() && sample.all("x").is_empty());
    }

    #[test]
    fn a_quantile_is_of_what_came_since() {
        let bucket = |low, high| {
            Sample::parse(&format!(
                "h_bucket{{le=\"0.5\"}} {low}\nh_bucket{{le=\"+Inf\"}} {high}\nh_bucket{{le=\"2\"}} {high}\n"
            ))
        };
        let (before, now) = (bucket(100, 100), bucket(199, 200));
        assert_eq!(now.quantile(&before, "h_bucket", &[], 0.99), Some(0.5));
        assert_eq!(now.quantile(&before, "h_bucket", &[], 0.999), Some(2.0));
        assert_eq!(now.quantile(&now, "h_bucket", &[], 0.5), None);
    }
}
