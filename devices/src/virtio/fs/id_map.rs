//! User and group ids of the guest as the host's, and back.
//!
//! A map is a list of rules, the first that matches an id counts, an id that none matches stays as it is:
//!
//! ```text
//! map:GUEST:HOST:COUNT           COUNT ids from GUEST on are those from HOST on, both ways
//! squash-guest:GUEST:HOST:COUNT  COUNT ids from GUEST on are all HOST on the host
//! squash-host:HOST:GUEST:COUNT   COUNT ids from HOST on are all GUEST in the guest
//! forbid-guest:GUEST:COUNT       requests that would use one of these ids are refused (EPERM)
//! ```
//!
//! As virtiofsd's `--translate-uid` and `--translate-gid`. A server that is not root lets the guest's root own what it
//! makes with `map:0:1000:1`, 1000 being the server's own id.

use std::str::FromStr;

/// `(uid_t)-1`: "unchanged" to the kernel, and no id.
const NO_ID: u32 = u32::MAX;

/// What a rule does with the ids it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Map,
    SquashGuest,
    SquashHost,
    ForbidGuest,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rule {
    kind: Kind,
    /// First id in the guest; for [`Kind::SquashHost`] the only one.
    guest: u32,
    /// First id on the host; for [`Kind::SquashGuest`] the only one.
    host: u32,
    count: u32,
}

/// How ids are translated. The default changes none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdMap {
    rules: Vec<Rule>,
}

/// Why a text is no rule of an [`IdMap`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdMapError {
    /// Not of one of the four forms.
    #[error(
        "{0:?} translates no ids: write map:GUEST:HOST:COUNT, squash-guest:GUEST:HOST:COUNT, \
         squash-host:HOST:GUEST:COUNT or forbid-guest:GUEST:COUNT"
    )]
    Form(String),
    /// A range that is empty or goes past the last id.
    #[error("{0:?} has a range of ids that is empty or ends past 4294967294")]
    Range(String),
    /// Two rules say something else of the same id.
    #[error("{0:?} is about ids that a rule before it is about already")]
    Overlap(String),
}

/// `id`'s place in `count` ids from `first` on.
fn place(id: u32, first: u32, count: u32) -> Option<u32> {
    id.checked_sub(first).filter(|place| *place < count)
}

impl Rule {
    fn parse(text: &str) -> Result<Self, IdMapError> {
        let form = || IdMapError::Form(text.to_owned());
        let fields: Vec<&str> = text.split(':').collect();
        let number = |field: &str| field.parse::<u32>().map_err(|_| form());
        let (kind, guest, host, count) = match fields.as_slice() {
            ["map", guest, host, count] => (Kind::Map, number(guest)?, number(host)?, number(count)?),
            ["squash-guest", guest, host, count] => (Kind::SquashGuest, number(guest)?, number(host)?, number(count)?),
            ["squash-host", host, guest, count] => (Kind::SquashHost, number(guest)?, number(host)?, number(count)?),
            ["forbid-guest", guest, count] => (Kind::ForbidGuest, number(guest)?, 0, number(count)?),
            _ => return Err(form()),
        };
        let rule = Rule { kind, guest, host, count };
        // The last id of each range is below NO_ID.
        let fits = |(first, count): (u32, u32)| count > 0 && first.checked_add(count).is_some();
        if fits(rule.guests()) && fits(rule.hosts()) { Ok(rule) } else { Err(IdMapError::Range(text.to_owned())) }
    }

    /// First and number of the guest's ids that it is about.
    fn guests(&self) -> (u32, u32) {
        (self.guest, if self.kind == Kind::SquashHost { 1 } else { self.count })
    }

    /// The same of the host's.
    fn hosts(&self) -> (u32, u32) {
        (self.host, if self.kind == Kind::SquashHost || self.kind == Kind::Map { self.count } else { 1 })
    }

    /// Whether both rules translate one id in one direction.
    fn overlaps(&self, other: &Rule) -> bool {
        let meet = |(a, count_a): (u32, u32), (b, count_b): (u32, u32)| a < b + count_b && b < a + count_a;
        let to_host = |rule: &Rule| rule.kind != Kind::SquashHost;
        let to_guest = |rule: &Rule| matches!(rule.kind, Kind::Map | Kind::SquashHost);
        (to_host(self) && to_host(other) && meet(self.guests(), other.guests()))
            || (to_guest(self) && to_guest(other) && meet(self.hosts(), other.hosts()))
    }
}

impl IdMap {
    /// Adds a rule.
    ///
    /// # Errors
    /// See [`IdMapError`].
    pub fn add(&mut self, rule: &str) -> Result<(), IdMapError> {
        let new = Rule::parse(rule)?;
        if self.rules.iter().any(|old| old.overlaps(&new)) {
            return Err(IdMapError::Overlap(rule.to_owned()));
        }
        self.rules.push(new);
        Ok(())
    }

    /// The host's id for the guest's; `None` if the guest may not use it.
    pub(super) fn to_host(&self, id: u32) -> Option<u32> {
        if id == NO_ID {
            return Some(id);
        }
        for rule in &self.rules {
            match (rule.kind, place(id, rule.guest, rule.count)) {
                (Kind::Map, Some(place)) => return Some(rule.host + place),
                (Kind::SquashGuest, Some(_)) => return Some(rule.host),
                (Kind::ForbidGuest, Some(_)) => return None,
                _ => {}
            }
        }
        Some(id)
    }

    /// The guest's id for the host's.
    pub(super) fn to_guest(&self, id: u32) -> u32 {
        for rule in &self.rules {
            match (rule.kind, place(id, rule.host, rule.count)) {
                (Kind::Map, Some(place)) => return rule.guest + place,
                (Kind::SquashHost, Some(_)) => return rule.guest,
                _ => {}
            }
        }
        id
    }

    /// Whether it changes nothing.
    pub(super) fn is_identity(&self) -> bool {
        self.rules.is_empty()
    }
}

impl FromStr for IdMap {
    type Err = IdMapError;

    /// Rules separated by commas.
    fn from_str(text: &str) -> Result<Self, IdMapError> {
        let mut map = IdMap::default();
        text.split(',').try_for_each(|rule| map.add(rule.trim()))?;
        Ok(map)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_without_a_rule_stay() {
        let map = IdMap::default();
        for id in [0, 1000, u32::MAX - 1, u32::MAX] {
            assert_eq!((map.to_host(id), map.to_guest(id)), (Some(id), id));
        }
    }

    #[test]
    fn each_kind_of_rule_translates_its_own_way() {
        let map: IdMap = "map:0:1000:2, squash-guest:10:5:10,squash-host:50:7:10,forbid-guest:100:1".parse().unwrap();
        assert_eq!([0, 1, 2].map(|id| map.to_host(id)), [Some(1000), Some(1001), Some(2)]);
        assert_eq!([999, 1000, 1001, 1002].map(|id| map.to_guest(id)), [999, 0, 1, 1002]);
        assert_eq!([10, 19, 20].map(|id| map.to_host(id)), [Some(5), Some(5), Some(20)]);
        assert_eq!(map.to_guest(5), 5);
        assert_eq!([50, 59, 60].map(|id| map.to_guest(id)), [7, 7, 60]);
        assert_eq!([99, 100, 101].map(|id| map.to_host(id)), [Some(99), None, Some(101)]);
        assert_eq!(map.to_host(u32::MAX), Some(u32::MAX), "no id");
    }

    #[test]
    fn the_last_ids_can_be_mapped() {
        let map: IdMap = "map:4294967290:0:5".parse().unwrap();
        assert_eq!((map.to_host(u32::MAX - 1), map.to_guest(4)), (Some(4), u32::MAX - 1));
    }

    #[test]
    fn rules_that_are_none_are_refused() {
        for bad in ["", "map", "map:0:0", "map:0:0:1:2", "map:-1:0:1", "map:a:0:1", "swap:0:0:1", "forbid-guest:1:2:3"]
        {
            assert_eq!(bad.parse::<IdMap>(), Err(IdMapError::Form(bad.into())));
        }
        for bad in ["map:0:0:0", "map:4294967290:0:6", "map:0:4294967295:1", "squash-host:4294967290:1:7"] {
            assert_eq!(bad.parse::<IdMap>(), Err(IdMapError::Range(bad.into())));
        }
        for (good, bad) in
            [("map:0:0:10", "map:9:20:1"), ("map:0:0:10", "map:20:9:1"), ("map:0:0:5", "squash-guest:4:9:1")]
        {
            assert_eq!(format!("{good},{bad}").parse::<IdMap>(), Err(IdMapError::Overlap(bad.into())));
        }
        "squash-guest:0:5:10,squash-host:0:5:10".parse::<IdMap>().unwrap();
    }
}
