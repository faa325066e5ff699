//! What a fault is, as a user writes it.

use std::str::FromStr;
use std::time::Duration;

use super::super::constants::opcode;
use super::super::errno_name::errno_number;
use super::super::operation::{operation_code, operation_name, operation_names};
use super::super::{Tag, TagError};

/// The longest delay.
const MAX_DELAY: Duration = Duration::from_secs(3600);

/// A fault that a share is to have: `[SHARE:]op=WRITE,nth=7,errno=EIO`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FaultRule {
    /// The share's tag; `None` for each.
    pub share: Option<Tag>,
    /// The FUSE opcode.
    pub(super) opcode: u32,
    /// Only requests with this name.
    pub(super) name: Option<String>,
    pub(super) when: When,
    pub(super) delay: Duration,
    pub(super) effect: Effect,
}

/// Which of the requests that a rule is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum When {
    Always,
    /// This one, counted from 1.
    Nth(u64),
    /// This one, the second time as many later, and so on.
    Every(u64),
}

/// What happens to them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// Nothing but the delay.
    Served,
    /// Answered with this errno instead of being done.
    Errno(i32),
    /// Done, and half of the reply's body left out.
    Short,
    /// Never answered, nor anything behind it on the queue.
    Stall,
}

/// Why a text is no fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FaultError {
    /// The part before the colon.
    #[error("the share `{share}`")]
    Share {
        /// As given.
        share: String,
        /// What is wrong.
        #[source]
        source: TagError,
    },
    /// A word of another kind.
    #[error(
        "`{0}` is not known; a fault is [SHARE:]op=OPERATION[,name=NAME][,nth=N|,every=N] and one or two of errno=NAME, short, stall and delay=TIME, such as myfs1:op=WRITE,nth=7,errno=EIO"
    )]
    Word(String),
    /// Given twice.
    #[error("`{0}` is given twice")]
    Twice(String),
    /// No operation.
    #[error("which operation? begin with op=, such as op=WRITE")]
    NoOperation,
    /// Not one of FUSE's.
    #[error("op={given}: FUSE has {}", known.join(", "))]
    Operation {
        /// As given.
        given: String,
        /// All there are.
        known: Vec<&'static str>,
    },
    /// Not an errno.
    #[error("errno={0}: a name such as EIO, ENOSPC or EDQUOT, or a number from 1 to 4095")]
    Errno(String),
    /// Not a count.
    #[error("{key}={given}: a whole number from 1 on")]
    Count {
        /// `nth` or `every`.
        key: &'static str,
        /// As given.
        given: String,
    },
    /// Not a time.
    #[error("delay={0}: a time up to an hour, such as 200ms, 2s or 1m")]
    Delay(String),
    /// Two that exclude each other.
    #[error("{0} and {1} exclude each other")]
    Both(&'static str, &'static str),
    /// Nothing happens.
    #[error("what is to happen? add errno=NAME, short, stall or delay=TIME")]
    NoEffect,
    /// The operation cannot have it.
    #[error("{operation} has no reply{what}; it can only have {possible}")]
    NoReply {
        /// Its name.
        operation: &'static str,
        /// What kind of a reply it has not.
        what: &'static str,
        /// What remains.
        possible: &'static str,
    },
}

impl FaultRule {
    /// Whether it is about this share.
    pub fn is_for(&self, share: &str) -> bool {
        self.share.as_ref().is_none_or(|tag| tag.as_str() == share)
    }
}

/// Operations without a reply.
fn is_unanswered(code: u32) -> bool {
    matches!(code, opcode::FORGET | opcode::BATCH_FORGET | opcode::INTERRUPT | opcode::NOTIFY_REPLY)
}

/// Operations whose reply is a header and nothing else.
fn has_empty_reply(code: u32) -> bool {
    const EMPTY: [&str; 23] = [
        "UNLINK",
        "RMDIR",
        "RENAME",
        "RENAME2",
        "RELEASE",
        "RELEASEDIR",
        "FSYNC",
        "FSYNCDIR",
        "SETXATTR",
        "REMOVEXATTR",
        "FLUSH",
        "SETLK",
        "SETLKW",
        "ACCESS",
        "DESTROY",
        "FALLOCATE",
        "SETUPMAPPING",
        "REMOVEMAPPING",
        "SYNCFS",
        "FORGET",
        "BATCH_FORGET",
        "INTERRUPT",
        "NOTIFY_REPLY",
    ];
    EMPTY.contains(&operation_name(code))
}

fn count(key: &'static str, given: &str) -> Result<u64, FaultError> {
    let number = given.parse().ok().filter(|number| *number > 0);
    number.ok_or_else(|| FaultError::Count { key, given: given.to_owned() })
}

fn delay(given: &str) -> Result<Duration, FaultError> {
    let wrong = || FaultError::Delay(given.to_owned());
    let (digits, unit) = given.split_at(given.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?);
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    let unit = match unit {
        "us" => Duration::from_micros(1),
        "ms" => Duration::from_millis(1),
        "s" => Duration::from_secs(1),
        "m" => Duration::from_secs(60),
        _ => return Err(wrong()),
    };
    let delay = u32::try_from(number).ok().and_then(|number| unit.checked_mul(number));
    delay.filter(|delay| !delay.is_zero() && *delay <= MAX_DELAY).ok_or_else(wrong)
}

fn errno(given: &str) -> Result<i32, FaultError> {
    let number = errno_number(given).or_else(|| given.parse().ok().filter(|number| (1..4096).contains(number)));
    number.ok_or_else(|| FaultError::Errno(given.to_owned()))
}

fn operation(given: &str) -> Result<u32, FaultError> {
    let wrong = || FaultError::Operation { given: given.to_owned(), known: operation_names().collect() };
    operation_code(given).ok_or_else(wrong)
}

/// Sets what may be set once.
fn once<T>(slot: &mut Option<T>, key: &str, value: T) -> Result<(), FaultError> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(FaultError::Twice(key.to_owned())),
    }
}

impl FromStr for FaultRule {
    type Err = FaultError;

    fn from_str(text: &str) -> Result<Self, FaultError> {
        let (share, words) = match text.split_once(':').filter(|(share, _)| !share.contains(['=', ','])) {
            Some((share, words)) => {
                let tag = Tag::new(share).map_err(|source| FaultError::Share { share: share.to_owned(), source })?;
                (Some(tag), words)
            }
            None => (None, text),
        };
        let (mut code, mut name, mut nth, mut every) = (None, None, None, None);
        let (mut error, mut wait, mut short, mut stall) = (None, None, None, None);
        for word in words.split(',') {
            match word.split_once('=').map_or((word, None), |(key, value)| (key, Some(value))) {
                ("op", Some(value)) => once(&mut code, "op", operation(value)?)?,
                ("name", Some(value)) => once(&mut name, "name", value.to_owned())?,
                ("nth", Some(value)) => once(&mut nth, "nth", count("nth", value)?)?,
                ("every", Some(value)) => once(&mut every, "every", count("every", value)?)?,
                ("errno", Some(value)) => once(&mut error, "errno", errno(value)?)?,
                ("delay", Some(value)) => once(&mut wait, "delay", delay(value)?)?,
                ("short", None) => once(&mut short, "short", ())?,
                ("stall", None) => once(&mut stall, "stall", ())?,
                _ => return Err(FaultError::Word(word.to_owned())),
            }
        }
        let opcode = code.ok_or(FaultError::NoOperation)?;
        let when = match (nth, every) {
            (Some(_), Some(_)) => return Err(FaultError::Both("nth", "every")),
            (Some(nth), None) => When::Nth(nth),
            (None, Some(every)) => When::Every(every),
            (None, None) => When::Always,
        };
        let effect = match (error, short, stall) {
            (Some(_), Some(()), _) => return Err(FaultError::Both("errno", "short")),
            (Some(_), _, Some(())) => return Err(FaultError::Both("errno", "stall")),
            (_, Some(()), Some(())) => return Err(FaultError::Both("short", "stall")),
            (_, _, Some(())) if wait.is_some() => return Err(FaultError::Both("delay", "stall")),
            (Some(error), ..) => Effect::Errno(error),
            (_, Some(()), _) => Effect::Short,
            (.., Some(())) => Effect::Stall,
            (None, None, None) if wait.is_some() => Effect::Served,
            (None, None, None) => return Err(FaultError::NoEffect),
        };
        let operation = operation_name(opcode);
        let no_reply = |what, possible| Err(FaultError::NoReply { operation, what, possible });
        match effect {
            Effect::Errno(_) | Effect::Short if is_unanswered(opcode) => return no_reply("", "delay=TIME or stall"),
            Effect::Short if has_empty_reply(opcode) => {
                return no_reply(" that could be shorter", "errno=NAME, delay=TIME or stall");
            }
            _ => {}
        }
        Ok(FaultRule { share, opcode, name, when, delay: wait.unwrap_or_default(), effect })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(text: &str) -> FaultRule {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn a_rule_says_where_what_when_and_how() {
        let one = rule("myfs1:op=WRITE,nth=7,errno=EIO");
        assert!(one.is_for("myfs1") && !one.is_for("myfs2"));
        assert_eq!((one.opcode, one.when, one.effect), (16, When::Nth(7), Effect::Errno(libc::EIO)));
        let two = rule("op=LOOKUP,every=3,name=a:b=c,delay=200ms");
        assert!(two.is_for("any") && two.delay == Duration::from_millis(200));
        assert_eq!((two.when, two.name.as_deref(), two.effect), (When::Every(3), Some("a:b=c"), Effect::Served));
        assert_eq!(rule("op=READ,short").when, When::Always);
        assert_eq!(rule("op=READ,delay=1m,short").effect, Effect::Short);
        assert_eq!(rule("op=FORGET,stall").effect, Effect::Stall);
        assert_eq!(rule("op=INIT,errno=4095").effect, Effect::Errno(4095));
    }

    #[test]
    fn what_is_no_rule_is_refused_with_what_would_be_one() {
        for (text, says) in [
            ("", "`` is not known; a fault is [SHARE:]op=OPERATION"),
            ("errno=EIO", "which operation?"),
            ("op=WRIET,errno=EIO", "op=WRIET: FUSE has LOOKUP, FORGET"),
            ("op=write,errno=EIO", "op=write: FUSE has"),
            ("op=WRITE", "what is to happen?"),
            ("op=WRITE,errno=EWHAT", "errno=EWHAT: a name such as EIO"),
            ("op=WRITE,errno=0", "errno=0: a name"),
            ("op=WRITE,errno=4096", "errno=4096: a name"),
            ("op=WRITE,errno", "`errno` is not known"),
            ("op=WRITE,stall=1", "`stall=1` is not known"),
            ("op=WRITE,nth=0,stall", "nth=0: a whole number from 1 on"),
            ("op=WRITE,every=-1,stall", "every=-1: a whole number"),
            ("op=WRITE,nth=1,every=2,stall", "nth and every exclude each other"),
            ("op=WRITE,nth=1,nth=2,stall", "`nth` is given twice"),
            ("op=WRITE,short,stall", "short and stall exclude each other"),
            ("op=WRITE,errno=EIO,stall", "errno and stall exclude"),
            ("op=WRITE,delay=1s,stall", "delay and stall exclude"),
            ("op=WRITE,delay=5", "delay=5: a time up to an hour"),
            ("op=WRITE,delay=0s", "delay=0s: a time"),
            ("op=WRITE,delay=61m", "delay=61m: a time"),
            ("op=WRITE,delay=99999999999999999999s", "a time up to an hour"),
            ("op=FSYNC,short", "FSYNC has no reply that could be shorter; it can only have errno=NAME"),
            ("op=FORGET,errno=EIO", "FORGET has no reply; it can only have delay=TIME or stall"),
            (":op=WRITE,stall", "the share ``"),
        ] {
            let error = text.parse::<FaultRule>().unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
