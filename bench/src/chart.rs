//! Line charts as SVG text.
//!
//! Called by `html`. A pure function of its numbers. Invariant: points that an axis cannot show (not finite, or not
//! positive on a logarithmic one) are left out, never moved. This file refuses to know what is drawn.

use std::fmt::Write as _;

/// Size of a chart and of the room around its plot, in SVG units.
const WIDTH: f64 = 620.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 16.0;
const BOTTOM: f64 = 44.0;

/// One line.
#[derive(Clone, Debug)]
pub struct Series {
    /// Shown when the pointer is over it.
    pub name: String,
    /// A CSS colour.
    pub colour: &'static str,
    /// Whether it is drawn with dashes.
    pub dashed: bool,
    /// In the order in which they are joined.
    pub points: Vec<(f64, f64)>,
}

/// How values become places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// From zero.
    Linear,
    /// Powers of ten.
    Logarithmic,
}

/// One axis.
#[derive(Clone, Copy, Debug)]
pub struct Axis<'a> {
    /// What it is, with its unit.
    pub title: &'a str,
    /// How values become places.
    pub scale: Scale,
    /// Values with marks; none: where they are good to read.
    pub ticks: &'a [(f64, &'a str)],
}

/// The values that an axis shows.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Range {
    scale: Scale,
    low: f64,
    high: f64,
}

impl Range {
    /// Of all values that the scale can show.
    fn of(scale: Scale, values: impl Iterator<Item = f64>) -> Self {
        let shown = values.filter(|value| Self::shows(scale, *value));
        let (low, high) = shown
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
        match scale {
            _ if low > high => Self { scale, low: 1.0, high: 10.0 },
            Scale::Linear => Self { scale, low: 0.0, high: if high > 0.0 { high * 1.05 } else { 1.0 } },
            Scale::Logarithmic => {
                let (low, high) = (low.log10().floor(), high.log10().ceil());
                Self { scale, low: 10_f64.powf(low), high: 10_f64.powf(high.max(low + 1.0)) }
            }
        }
    }

    fn shows(scale: Scale, value: f64) -> bool {
        value.is_finite() && (scale == Scale::Linear || value > 0.0)
    }

    /// From 0 to 1.
    fn place(self, value: f64) -> f64 {
        match self.scale {
            Scale::Linear => (value - self.low) / (self.high - self.low),
            Scale::Logarithmic => (value.log10() - self.low.log10()) / (self.high.log10() - self.low.log10()),
        }
    }

    fn ticks(self) -> Vec<(f64, String)> {
        match self.scale {
            Scale::Logarithmic => {
                let mut ticks = Vec::new();
                let mut value = self.low;
                while value <= self.high * 1.001 {
                    ticks.push((value, short(value)));
                    value *= 10.0;
                }
                ticks
            }
            Scale::Linear => {
                let step = step(self.high / 5.0);
                let mut ticks = Vec::new();
                let mut value = 0.0;
                while value <= self.high {
                    ticks.push((value, short(value)));
                    value += step;
                }
                ticks
            }
        }
    }
}

/// The next of 1, 2 and 5 times a power of ten.
fn step(least: f64) -> f64 {
    let power = 10_f64.powf(least.log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|times| times * power).find(|step| *step >= least).unwrap_or(power)
}

/// A number with at most a few characters.
fn short(value: f64) -> String {
    match value {
        _ if value >= 1e6 => format!("{}M", value / 1e6),
        _ if value >= 1e3 => format!("{}k", value / 1e3),
        _ => format!("{}", (value * 1e6).round() / 1e6),
    }
}

/// Text within markup.
#[must_use]
pub fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Draws the lines; one with a single point is a dot.
#[must_use]
pub fn svg(x: Axis<'_>, y: Axis<'_>, series: &[Series]) -> String {
    let points = || series.iter().flat_map(|line| &line.points);
    let (range_x, range_y) = (
        Range::of(x.scale, points().map(|point| point.0)),
        Range::of(y.scale, points().map(|point| point.1)),
    );
    let at_x = |value: f64| LEFT + range_x.place(value) * (WIDTH - LEFT - RIGHT);
    let at_y = |value: f64| HEIGHT - BOTTOM - range_y.place(value) * (HEIGHT - TOP - BOTTOM);
    let mut out = format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\">");
    for (value, label) in ticks(range_y, y.ticks) {
        let at = at_y(value);
        _ = write!(
            out,
            "<path class=\"grid\" d=\"M{LEFT} {at:.1}H{}\"/><text x=\"{}\" y=\"{:.1}\" \
             text-anchor=\"end\">{}</text>",
            WIDTH - RIGHT,
            LEFT - 6.0,
            at + 4.0,
            escaped(&label)
        );
    }
    for (value, label) in ticks(range_x, x.ticks) {
        let at = at_x(value);
        _ = write!(
            out,
            "<path class=\"grid\" d=\"M{at:.1} {TOP}V{}\"/><text x=\"{at:.1}\" y=\"{}\" \
             text-anchor=\"middle\">{}</text>",
            HEIGHT - BOTTOM,
            HEIGHT - BOTTOM + 16.0,
            escaped(&label)
        );
    }
    _ = write!(
        out,
        "<text class=\"axis\" x=\"{}\" y=\"{}\" text-anchor=\"middle\">{}</text>\
         <text class=\"axis\" transform=\"translate(14 {}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
        f64::midpoint(LEFT, WIDTH - RIGHT),
        HEIGHT - 8.0,
        escaped(x.title),
        f64::midpoint(TOP, HEIGHT - BOTTOM),
        escaped(y.title)
    );
    for line in series {
        let shown: Vec<(f64, f64)> = line
            .points
            .iter()
            .filter(|point| Range::shows(x.scale, point.0) && Range::shows(y.scale, point.1))
            .map(|point| (at_x(point.0), at_y(point.1)))
            .collect();
        let title = escaped(&line.name);
        if let [(x, y)] = shown[..] {
            _ = write!(
                out,
                "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\" fill=\"{}\"><title>{title}</title></circle>",
                line.colour
            );
            continue;
        }
        let path: Vec<String> = shown.iter().map(|(x, y)| format!("{x:.1} {y:.1}")).collect();
        let dashes = if line.dashed { " stroke-dasharray=\"5 4\"" } else { "" };
        if !path.is_empty() {
            _ = write!(
                out,
                "<path class=\"line\" d=\"M{}\" stroke=\"{}\"{dashes}><title>{title}</title></path>",
                path.join("L"),
                line.colour
            );
        }
    }
    out.push_str("</svg>");
    out
}

/// The asked-for marks that the range shows, or its own.
fn ticks(range: Range, asked: &[(f64, &str)]) -> Vec<(f64, String)> {
    if asked.is_empty() {
        return range.ticks();
    }
    let within = |value: f64| value >= range.low && value <= range.high * 1.001;
    asked.iter().filter(|tick| within(tick.0)).map(|tick| (tick.0, tick.1.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_hold_their_values() {
        let range = Range::of(Scale::Logarithmic, [30.0, 4000.0, 0.0, f64::NAN].into_iter());
        assert_eq!((range.low, range.high), (10.0, 10_000.0));
        assert!((range.place(10.0)).abs() < 1e-9 && (range.place(10_000.0) - 1.0).abs() < 1e-9);
        let labels: Vec<String> = range.ticks().into_iter().map(|tick| tick.1).collect();
        assert_eq!(labels, ["10", "100", "1k", "10k"]);
        let range = Range::of(Scale::Linear, [3.0, 8.0].into_iter());
        assert!(range.low == 0.0 && range.high > 8.0 && range.ticks().len() >= 4);
        assert!(Range::of(Scale::Linear, std::iter::empty()).ticks().len() >= 4);
    }

    #[test]
    fn what_cannot_be_shown_is_left_out_and_names_are_escaped() {
        let axis = |scale| Axis { title: "a<b", scale, ticks: &[] };
        let series = |points: &[(f64, f64)]| Series {
            name: "x&y".to_owned(),
            colour: "red",
            dashed: true,
            points: points.to_vec(),
        };
        let lines = [series(&[(1.0, 0.0), (2.0, 10.0), (3.0, 100.0)]), series(&[(1.0, 10.0)]), series(&[])];
        let text = svg(axis(Scale::Linear), axis(Scale::Logarithmic), &lines);
        assert_eq!(text.matches("class=\"line\"").count(), 1);
        assert_eq!(text.matches("<circle").count(), 1);
        assert!(text.contains("a&lt;b") && text.contains("x&amp;y") && !text.contains("NaN"));
    }
}
