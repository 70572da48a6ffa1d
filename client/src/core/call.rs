//! One question and its answer: administration, offsets, the first handshake.
//!
//! Driven like the other machines. Invariants: a request that may have taken effect is repeated only if that does no
//! harm; the call ends once. It refuses to know what is asked.

use std::time::{Duration, Instant};

use corelog_wire::message::{Answer, Request};

use super::metadata::Target;
use super::random::{Backoff, Random};
use super::{Effect, Input, Outgoing, RequestId};
use crate::error::Error;

/// What is asked, and how patiently.
#[derive(Clone, Debug)]
pub struct Question {
    /// Where to.
    pub target: Target,
    /// The request.
    pub request: Request,
    /// How long the whole may take.
    pub deadline: Duration,
    /// How often it is tried at most.
    pub attempts_max: u32,
    /// Whether asking twice does no harm.
    pub repeatable: bool,
}

/// The state of a call.
#[derive(Debug)]
pub struct Call {
    question: Question,
    backoff: Backoff,
    random: Random,
    give_up_at: Option<Instant>,
    again_at: Option<Instant>,
    attempts: u32,
    asked: bool,
    done: bool,
    last_error: Option<Error>,
}

impl Call {
    /// A call that begins with its first input.
    #[must_use]
    pub fn new(question: Question, backoff: Backoff, seed: u64) -> Self {
        Self {
            question,
            backoff,
            random: Random::new(seed),
            give_up_at: None,
            again_at: None,
            attempts: 0,
            asked: false,
            done: false,
            last_error: None,
        }
    }

    /// Takes an input; the event is the call's end.
    pub fn handle(&mut self, now: Instant, input: Input, out: &mut Vec<Effect<Result<Answer, Error>>>) {
        if self.done {
            return;
        }
        let give_up_at = *self.give_up_at.get_or_insert(now + self.question.deadline);
        match input {
            Input::Answered { answer: Answer::Refused { refusal, .. }, .. } => {
                let throttle = Duration::from_millis(refusal.throttle_ms.into());
                let again = refusal.code == corelog_wire::error::ErrorCode::Throttled;
                self.failed(now, refusal.into(), again, throttle, out);
            }
            Input::Answered { answer, .. } => self.end(Ok(answer), out),
            Input::Failed { error, .. } => {
                // Who could not be reached has done nothing.
                let again = matches!(error, Error::Unreachable { .. })
                    || (self.question.repeatable && error.is_retriable());
                self.failed(now, error, again, Duration::ZERO, out);
            }
            Input::Sent { .. } | Input::Tick => {}
        }
        if self.done {
            return;
        }
        if now >= give_up_at {
            let error = Error::deadline(self.question.request.kind().name(), self.last_error.take());
            self.end(Err(error), out);
        } else if !self.asked && self.again_at.is_none_or(|at| at <= now) {
            self.asked = true;
            self.attempts += 1;
            out.push(Effect::Send(Outgoing {
                id: RequestId::new(self.attempts.into()),
                target: self.question.target.clone(),
                request: self.question.request.clone(),
                payload: vec![],
                deadline: give_up_at,
                answered: true,
            }));
        }
    }

    /// When to come back with a tick.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        let again = self.again_at.filter(|_| !self.asked);
        again.into_iter().chain(self.give_up_at).min().filter(|_| !self.done)
    }

    /// Whether it has ended.
    #[must_use]
    pub const fn is_done(&self) -> bool {
        self.done
    }

    fn failed(
        &mut self,
        now: Instant,
        error: Error,
        again: bool,
        wait: Duration,
        out: &mut Vec<Effect<Result<Answer, Error>>>,
    ) {
        self.asked = false;
        if !again || self.attempts >= self.question.attempts_max {
            return self.end(Err(error), out);
        }
        self.last_error = Some(error);
        self.again_at = Some(now + wait.max(self.backoff.after(self.attempts, &mut self.random)));
    }

    fn end(&mut self, result: Result<Answer, Error>, out: &mut Vec<Effect<Result<Answer, Error>>>) {
        self.done = true;
        out.push(Effect::Event(result));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use corelog_wire::error::ErrorCode;
    use corelog_wire::frame::Kind;
    use corelog_wire::message::{DeleteTopicAnswer, DeleteTopicRequest, Refusal};

    fn call(repeatable: bool, attempts_max: u32) -> Call {
        let request = Request::DeleteTopic(DeleteTopicRequest { name: "t".into() });
        let deadline = Duration::from_secs(10);
        let question = Question { target: Target::Any, request, deadline, attempts_max, repeatable };
        Call::new(question, Backoff::default(), 1)
    }

    fn lost() -> Input {
        Input::Failed { id: RequestId::new(1), error: Error::ConnectionLost { reason: "reset".into() } }
    }

    fn sends(out: &[Effect<Result<Answer, Error>>]) -> usize {
        out.iter().filter(|effect| matches!(effect, Effect::Send(_))).count()
    }

    #[test]
    fn what_may_have_taken_effect_is_repeated_only_if_that_does_no_harm() {
        let now = Instant::now();
        for (repeatable, expected) in [(true, 2), (false, 1)] {
            let (mut call, mut out) = (call(repeatable, 9), Vec::new());
            call.handle(now, Input::Tick, &mut out);
            call.handle(now, lost(), &mut out);
            call.handle(now + Duration::from_secs(2), Input::Tick, &mut out);
            assert_eq!(sends(&out), expected);
            assert_eq!(call.is_done(), !repeatable);
        }
    }

    #[test]
    fn it_gives_up_at_its_deadline_and_says_why() {
        let now = Instant::now();
        let (mut call, mut out) = (call(true, 9), Vec::new());
        call.handle(now, Input::Tick, &mut out);
        call.handle(now, lost(), &mut out);
        call.handle(now + Duration::from_secs(10), Input::Tick, &mut out);
        let Some(Effect::Event(Err(error))) = out.last() else { panic!("no end: {out:?}") };
        assert!(error.to_string().contains("reset"), "{error}");
    }

    #[test]
    fn a_refusal_ends_it_unless_it_says_slow_down() {
        let now = Instant::now();
        let (mut call, mut out) = (call(true, 9), Vec::new());
        call.handle(now, Input::Tick, &mut out);
        let refused = |code, throttle_ms| Input::Answered {
            id: RequestId::new(1),
            answer: Answer::Refused {
                kind: Kind::DeleteTopic,
                refusal: Refusal { throttle_ms, ..Refusal::new(code, "") },
            },
            payload: bytes::Bytes::new(),
        };
        call.handle(now, refused(ErrorCode::Throttled, 3_000), &mut out);
        assert_eq!(call.deadline(), Some(now + Duration::from_secs(3)));
        call.handle(now + Duration::from_secs(3), Input::Tick, &mut out);
        call.handle(now + Duration::from_secs(3), refused(ErrorCode::UnknownTopic, 0), &mut out);
        assert!(call.is_done());
        assert_eq!(sends(&out), 2);
        call.handle(
            now,
            Input::Answered {
                id: RequestId::new(2),
                answer: Answer::DeleteTopic(DeleteTopicAnswer {}),
                payload: bytes::Bytes::new(),
            },
            &mut out,
        );
        assert_eq!(out.len(), 3, "after its end nothing happens");
    }
}
