//! What a member of a group wants to read: topics by name, and patterns that topics to come may match, too.
//!
//! Invariant: a pattern says with `*` where any characters may stand, and nothing else, so that matching takes time in
//! proportion to the lengths of both and a subscription cannot be an attack. Refuses to know topic ids.

use std::collections::BTreeSet;

/// The topics that a member wants.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Subscription {
    /// By name; a topic that does not exist yet counts once it does.
    pub names: BTreeSet<String>,
    /// By pattern, such as `orders.*`.
    pub patterns: BTreeSet<String>,
}

impl Subscription {
    /// Whether the topic of this name is wanted.
    #[must_use]
    pub fn wants(&self, name: &str) -> bool {
        self.names.contains(name) || self.patterns.iter().any(|pattern| matches(pattern, name))
    }
}

/// Whether `name` is what `pattern` describes: each piece between stars stands in the name after the one before it,
/// the first at its start and the last at its end.
fn matches(pattern: &str, name: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(mut name) = name.strip_prefix(first) else { return false };
    let (middle, last) = rest.rsplit_once('*').unwrap_or(("", rest));
    for piece in middle.split('*') {
        let Some(place) = name.find(piece) else { return false };
        name = &name[place + piece.len()..];
    }
    name.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_stand_for_any_characters_and_nothing_else_is_special() {
        for (pattern, name, expected) in [
            ("orders", "orders", true),
            ("orders", "orders.v1", false),
            ("orders.*", "orders.v1", true),
            ("orders.*", "orders.", true),
            ("orders.*", "ordersxv1", false),
            ("*", "", true),
            ("*.v1", "orders.v1", true),
            ("*.v1", "orders.v12", false),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "acb", false),
            ("a*a", "a", false),
            ("a**a", "aa", true),
            ("[ab]+", "a", false),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn names_and_patterns_both_count() {
        let subscription = Subscription {
            names: BTreeSet::from(["payments".to_owned()]),
            patterns: BTreeSet::from(["orders.*".to_owned()]),
        };
        assert!(subscription.wants("payments") && subscription.wants("orders.eu"));
        assert!(!subscription.wants("refunds"));
        assert!(!Subscription::default().wants("payments"));
    }
}
