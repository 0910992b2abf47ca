//! Prometheus' text format, as far as the tests need it: the value of a metric.

/// Returns the sum over all lines of `text` whose metric is `name` and whose label set contains `label`. `label` is in
/// the text format's notation, such as `role="leader"`; an empty `label` matches all. Returns `None` if no line
/// matches.
pub fn sum(text: &str, name: &str, label: &str) -> Option<f64> {
    let values = text.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        let (labels, value) = match rest.strip_prefix('{') {
            Some(rest) => rest.rsplit_once('}')?,
            None if rest.starts_with(' ') => ("", rest),
            None => return None,
        };
        // A timestamp may follow the value.
        labels.contains(label).then(|| value.split_whitespace().next()?.parse::<f64>().ok())?
    });
    values.fold(None, |sum, value| Some(sum.unwrap_or(0.0) + value))
}

#[cfg(test)]
mod tests {
    use super::sum;

    #[test]
    fn sums_what_matches() {
        let text = "# HELP a b\n# TYPE a gauge\na 1\na{x=\"1\",y=\"}\"} 2\na{x=\"2\"} 4 1700000000000\nab 8\n";
        let check = |name, label, expected| assert_eq!(sum(text, name, label), expected, "{name} {label}");
        check("a", "", Some(7.0));
        check("a", "x=\"1\"", Some(2.0));
        check("ab", "", Some(8.0));
        check("abc", "", None);
        check("a", "z=", None);
    }
}
