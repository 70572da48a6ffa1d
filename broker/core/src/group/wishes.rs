//! What a member says of itself, checked: whatever is kept of it later is within these bounds.

use std::time::Duration;

use corelog_wire::message::{Assignor, MemberWishes};
use thiserror::Error;

use super::Subscription;
use crate::topic::{TOPIC_NAME_BYTES_MAX, TopicName, TopicNameError};

/// The shortest session: below it the pauses of a busy machine would look like deaths.
pub const SESSION_TIMEOUT_MIN: Duration = Duration::from_millis(500);
/// The longest session: as long as a dead member may keep its partitions from others.
pub const SESSION_TIMEOUT_MAX: Duration = Duration::from_mins(30);
/// Most topics and patterns of one member.
pub const SUBSCRIPTION_MAX: usize = 256;
/// Longest instance id and client name.
pub const MEMBER_TEXT_BYTES_MAX: usize = 249;

/// What a member says of itself when it joins, and whenever it changes its mind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberInfo {
    /// How long it may be silent before its session ends.
    pub session_timeout: Duration,
    /// A name that outlives the process: a member that left for a restart gets its partitions back under it.
    pub instance: Option<String>,
    /// What it wants to read.
    pub subscription: Subscription,
    /// How it wants the group's partitions to be spread.
    pub assignor: Assignor,
    /// What a person calls the program.
    pub client_name: String,
}

/// Why a member's wishes are refused. Maps to `INVALID_GROUP`.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum WishRefusal {
    /// Outside [`SESSION_TIMEOUT_MIN`] and [`SESSION_TIMEOUT_MAX`].
    #[error("a session lasts 500 ms to 30 min, not {} ms", .0.as_millis())]
    SessionTimeout(Duration),
    /// Neither a topic nor a pattern.
    #[error("a member wants at least one topic or pattern")]
    WantsNothing,
    /// More than [`SUBSCRIPTION_MAX`].
    #[error(
        "a member wants {wanted} topics and patterns; at most {SUBSCRIPTION_MAX} are allowed, and patterns may match many"
    )]
    WantsTooMuch {
        /// How many.
        wanted: usize,
    },
    /// A topic that no topic can be named.
    #[error(transparent)]
    Topic(#[from] TopicNameError),
    /// A pattern that matches no topic's name, or is too long.
    #[error("pattern {0:?}: 1 to {TOPIC_NAME_BYTES_MAX} characters of a-z A-Z 0-9 . _ - *")]
    Pattern(String),
    /// The instance id or the client name.
    #[error(
        "the {what} has at most {MEMBER_TEXT_BYTES_MAX} bytes, none of them control characters, and is not empty if it is there"
    )]
    Text {
        /// Which of both.
        what: &'static str,
    },
}

impl MemberInfo {
    /// Checks what a member says of itself.
    ///
    /// # Errors
    /// [`WishRefusal`]
    pub fn of(wishes: MemberWishes) -> Result<Self, WishRefusal> {
        let MemberWishes { session_timeout, topics, patterns, assignor, instance, client_name } = wishes;
        if !(SESSION_TIMEOUT_MIN..=SESSION_TIMEOUT_MAX).contains(&session_timeout) {
            return Err(WishRefusal::SessionTimeout(session_timeout));
        }
        let wanted = topics.len() + patterns.len();
        if wanted == 0 {
            return Err(WishRefusal::WantsNothing);
        }
        if wanted > SUBSCRIPTION_MAX {
            return Err(WishRefusal::WantsTooMuch { wanted });
        }
        for topic in &topics {
            TopicName::new(topic)?;
        }
        if let Some(pattern) = patterns.iter().find(|pattern| !is_pattern(pattern)) {
            return Err(WishRefusal::Pattern(pattern.chars().take(TOPIC_NAME_BYTES_MAX).collect()));
        }
        if instance.as_ref().is_some_and(|instance| instance.is_empty() || !is_text(instance)) {
            return Err(WishRefusal::Text { what: "instance id" });
        }
        if !is_text(&client_name) {
            return Err(WishRefusal::Text { what: "client name" });
        }
        let subscription =
            Subscription { names: topics.into_iter().collect(), patterns: patterns.into_iter().collect() };
        Ok(Self { session_timeout, instance, subscription, assignor, client_name })
    }

    /// What it said, as it would say it again.
    #[must_use]
    pub fn wishes(&self) -> MemberWishes {
        MemberWishes {
            session_timeout: self.session_timeout,
            topics: self.subscription.names.iter().cloned().collect(),
            patterns: self.subscription.patterns.iter().cloned().collect(),
            assignor: self.assignor,
            instance: self.instance.clone(),
            client_name: self.client_name.clone(),
        }
    }

    /// Bytes of its texts.
    #[must_use]
    pub fn text_bytes(&self) -> usize {
        let wanted = self.subscription.names.iter().chain(&self.subscription.patterns);
        let texts = wanted.chain(&self.instance).chain([&self.client_name]);
        texts.map(String::len).sum()
    }
}

fn is_pattern(pattern: &str) -> bool {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '*');
    (1..=TOPIC_NAME_BYTES_MAX).contains(&pattern.len()) && pattern.chars().all(legal)
}

fn is_text(text: &str) -> bool {
    text.len() <= MEMBER_TEXT_BYTES_MAX && !text.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wishes() -> MemberWishes {
        MemberWishes {
            session_timeout: Duration::from_secs(10),
            topics: vec!["orders".to_owned()],
            patterns: vec!["eu.*-raw".to_owned()],
            assignor: Assignor::Range,
            instance: Some("till 4".to_owned()),
            client_name: "käse".to_owned(),
        }
    }

    #[test]
    fn wishes_within_bounds_come_back_as_they_were() {
        assert_eq!(MemberInfo::of(wishes()).unwrap().wishes(), wishes());
    }

    #[test]
    fn wishes_beyond_bounds_are_refused_by_their_fault() {
        let refused = |wishes: MemberWishes| MemberInfo::of(wishes).unwrap_err().to_string();
        for (session_timeout, what) in [(499, "499 ms"), (1_800_001, "1800001 ms")] {
            let session_timeout = Duration::from_millis(session_timeout);
            assert!(refused(MemberWishes { session_timeout, ..wishes() }).ends_with(what));
        }
        let nothing = MemberWishes { topics: vec![], patterns: vec![], ..wishes() };
        assert!(refused(nothing).contains("at least one"));
        let much = MemberWishes { topics: vec!["a".to_owned(); SUBSCRIPTION_MAX], ..wishes() };
        assert!(refused(much).contains("257"));
        let topics = vec!["a/b".to_owned()];
        assert!(refused(MemberWishes { topics, ..wishes() }).contains("'/'"));
        for pattern in ["", "a?", "ä*", &"*".repeat(250)] {
            let patterns = vec![pattern.to_owned()];
            assert!(refused(MemberWishes { patterns, ..wishes() }).starts_with("pattern"), "{pattern}");
        }
        for instance in ["", "a\nb", &"x".repeat(250)] {
            let instance = Some(instance.to_owned());
            assert!(refused(MemberWishes { instance, ..wishes() }).contains("instance id"));
        }
        let client_name = "\u{7}".to_owned();
        assert!(refused(MemberWishes { client_name, ..wishes() }).contains("client name"));
    }
}
