//! Names of extended attributes of the guest as the host's, and back.
//!
//! A map is a list of rules in virtiofsd's syntax (`--xattrmap`). A rule begins with the character that separates its
//! fields, usually `:` or `/`, and ends with it:
//!
//! ```text
//! :TYPE:SCOPE:KEY:PREPEND:
//! ```
//!
//! - `prefix`: a guest's name that begins with KEY gets PREPEND put before it on the host; a host's name that begins with
//!   PREPEND loses that in the guest.
//! - `ok`: names that begin with KEY (the guest's) or PREPEND (the host's) stay as they are.
//! - `bad`: the same names are refused (EPERM, ENODATA to read) or hidden from the guest.
//! - `unsupported`: the same names are EOPNOTSUPP or hidden.
//!
//! SCOPE says whose names are matched: `client` (the guest's), `server` (the host's) or `all`. The first rule that
//! matches counts; a name that none matches is as with `bad`. `:map:KEY:PREPEND:` is short for the rules that a prefix
//! needs to be safe, and has to be the last one.
//!
//! A server without CAP_SYS_ADMIN gives overlayfs in the guest its attributes by `:map:trusted.:user.virtiofs.:`.

use std::borrow::Cow;
use std::ffi::{CStr, CString};
use std::io;
use std::str::FromStr;

use super::passthrough::errno;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Prefix,
    Ok,
    Bad,
    Unsupported,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    action: Action,
    client: bool,
    server: bool,
    key: String,
    prepend: String,
}

impl Rule {
    fn new(action: Action, scope: (bool, bool), key: &str, prepend: &str) -> Self {
        Rule { action, client: scope.0, server: scope.1, key: key.into(), prepend: prepend.into() }
    }
}

/// How names are translated. The default changes none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct XattrMap {
    /// Empty: every name is as it is.
    rules: Vec<Rule>,
}

/// Why a text is no [`XattrMap`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum XattrMapError {
    /// A rule has too few fields or does not end with its separator.
    #[error("the attribute rule {0:?} is cut short: write :TYPE:SCOPE:KEY:PREPEND: or :map:KEY:PREPEND:")]
    Short(String),
    /// No such type.
    #[error("{0:?} is no type of attribute rule: prefix, ok, bad, unsupported and map are")]
    Type(String),
    /// No such scope.
    #[error("{0:?} is no scope of an attribute rule: client, server and all are")]
    Scope(String),
    /// Rules behind a `map` rule, which matches every name.
    #[error("the attribute rules {0:?} come after a map rule, which has to be the last")]
    AfterMap(String),
    /// No rule at all.
    #[error("there is no attribute rule: leave the map out, or write :ok:all:::")]
    Empty,
}

impl XattrMap {
    /// The host's name for the guest's.
    ///
    /// # Errors
    /// EPERM or EOPNOTSUPP, as the rules say.
    pub(super) fn to_host<'n>(&self, name: &'n CStr) -> io::Result<Cow<'n, CStr>> {
        if self.rules.is_empty() {
            return Ok(Cow::Borrowed(name));
        }
        let bytes = name.to_bytes();
        match self.rules.iter().find(|rule| rule.client && bytes.starts_with(rule.key.as_bytes())) {
            Some(Rule { action: Action::Ok, .. }) => Ok(Cow::Borrowed(name)),
            Some(Rule { action: Action::Prefix, prepend, .. }) => {
                let name = CString::new([prepend.as_bytes(), bytes].concat()).map_err(|_| errno(libc::EINVAL))?;
                Ok(Cow::Owned(name))
            }
            Some(Rule { action: Action::Unsupported, .. }) => Err(errno(libc::EOPNOTSUPP)),
            Some(Rule { action: Action::Bad, .. }) | None => Err(errno(libc::EPERM)),
        }
    }

    /// The guest's name for the host's; `None` if it is hidden.
    pub(super) fn to_guest<'n>(&self, name: &'n [u8]) -> Option<&'n [u8]> {
        if self.rules.is_empty() {
            return Some(name);
        }
        let rule = self.rules.iter().find(|rule| rule.server && name.starts_with(rule.prepend.as_bytes()))?;
        match rule.action {
            Action::Ok => Some(name),
            Action::Prefix => name.strip_prefix(rule.prepend.as_bytes()),
            Action::Bad | Action::Unsupported => None,
        }
    }

    /// Whether it changes nothing.
    pub(super) fn is_identity(&self) -> bool {
        self.rules.is_empty()
    }
}

impl FromStr for XattrMap {
    type Err = XattrMapError;

    fn from_str(text: &str) -> Result<Self, XattrMapError> {
        const ALL: (bool, bool) = (true, true);
        let mut rules = Vec::new();
        let mut rest = text.trim();
        while let Some(separator) = rest.chars().next() {
            let short = || XattrMapError::Short(rest.to_owned());
            let mut fields = rest.split(separator).skip(1);
            let mut used = separator.len_utf8();
            let mut field = || {
                let field = fields.next().ok_or_else(short)?;
                used += field.len() + separator.len_utf8();
                // Each field ends with the separator, also the last.
                if used > rest.len() { Err(short()) } else { Ok(field) }
            };
            let kind = field()?;
            if kind == "map" {
                let (key, prepend) = (field()?, field()?);
                let after = rest.get(used..).unwrap_or_default();
                if !after.trim().is_empty() {
                    return Err(XattrMapError::AfterMap(after.to_owned()));
                }
                rules.push(Rule::new(Action::Prefix, ALL, key, prepend));
                if key.is_empty() {
                    // Whatever the host has without the prefix.
                    rules.push(Rule::new(Action::Bad, ALL, "", ""));
                } else {
                    // The host's own of these names, and the prefixed ones by their host's name.
                    rules.push(Rule::new(Action::Bad, (false, true), "", key));
                    rules.push(Rule::new(Action::Bad, (true, false), prepend, ""));
                    rules.push(Rule::new(Action::Ok, ALL, "", ""));
                }
                return Ok(XattrMap { rules });
            }
            let action = match kind {
                "prefix" => Action::Prefix,
                "ok" => Action::Ok,
                "bad" => Action::Bad,
                "unsupported" => Action::Unsupported,
                other => return Err(XattrMapError::Type(other.to_owned())),
            };
            let scope = match field()? {
                "client" => (true, false),
                "server" => (false, true),
                "all" => ALL,
                other => return Err(XattrMapError::Scope(other.to_owned())),
            };
            rules.push(Rule::new(action, scope, field()?, field()?));
            rest = rest.get(used..).unwrap_or_default().trim_start();
        }
        if rules.is_empty() { Err(XattrMapError::Empty) } else { Ok(XattrMap { rules }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(text: &str) -> XattrMap {
        text.parse().unwrap()
    }

    fn to_host(map: &XattrMap, name: &str) -> Result<String, i32> {
        let name = CString::new(name).unwrap();
        match map.to_host(&name) {
            Ok(name) => Ok(name.to_str().unwrap().to_owned()),
            Err(error) => Err(error.raw_os_error().unwrap()),
        }
    }

    fn to_guest<'n>(map: &XattrMap, name: &'n str) -> Option<&'n str> {
        map.to_guest(name.as_bytes()).map(|name| std::str::from_utf8(name).unwrap())
    }

    #[test]
    fn without_rules_names_stay() {
        let map = XattrMap::default();
        assert_eq!((to_host(&map, "user.a"), to_guest(&map, "user.a")), (Ok("user.a".into()), Some("user.a")));
    }

    #[test]
    fn everything_gets_a_prefix() {
        for text in [":map::user.virtiofs.:", ":prefix:all::user.virtiofs.:\n :bad:all:::"] {
            let map = map(text);
            assert_eq!(to_host(&map, "trusted.a"), Ok("user.virtiofs.trusted.a".into()));
            assert_eq!(to_guest(&map, "user.virtiofs.trusted.a"), Some("trusted.a"));
            assert_eq!(to_guest(&map, "trusted.a"), None);
        }
    }

    #[test]
    fn some_get_a_prefix_and_the_prefixed_ones_cannot_be_named_otherwise() {
        let long =
            "/prefix/all/trusted./user.virtiofs./ /bad/server//trusted./ /bad/client/user.virtiofs.//\n/ok/all///";
        let short = map("/map/trusted./user.virtiofs./");
        assert_eq!(short, map(long));
        assert_eq!(to_host(&short, "trusted.a"), Ok("user.virtiofs.trusted.a".into()));
        assert_eq!(to_host(&short, "user.virtiofs.trusted.a"), Err(libc::EPERM));
        assert_eq!(to_host(&short, "user.a"), Ok("user.a".into()));
        assert_eq!(to_guest(&short, "trusted.a"), None, "the host's own");
        assert_eq!(to_guest(&short, "user.a"), Some("user.a"));
    }

    #[test]
    fn names_are_refused_hidden_and_unsupported() {
        let map = map(":unsupported:all:security.selinux:security.selinux::bad:client:user.x:::ok:client:user.::");
        assert_eq!(to_host(&map, "security.selinux"), Err(libc::EOPNOTSUPP));
        assert_eq!(to_guest(&map, "security.selinux"), None);
        assert_eq!(to_host(&map, "user.xy"), Err(libc::EPERM));
        assert_eq!(to_host(&map, "user.a"), Ok("user.a".into()));
        assert_eq!((to_host(&map, "trusted.a"), to_guest(&map, "user.a")), (Err(libc::EPERM), None), "no rule");
    }

    #[test]
    fn texts_that_are_no_rules_are_refused() {
        use XattrMapError as E;
        for (text, error) in [
            ("", E::Empty),
            ("  ", E::Empty),
            (":", E::Short(":".into())),
            ("::", E::Type(String::new())),
            (":ok", E::Short(":ok".into())),
            (":ok:all", E::Short(":ok:all".into())),
            (":ok:all::", E::Short(":ok:all::".into())),
            (":ok:all:::ok", E::Short("ok".into())),
            (":OK:all:::", E::Type("OK".into())),
            (":ok:both:::", E::Scope("both".into())),
            (":map:a.:", E::Short(":map:a.:".into())),
            (":map:a.:b.:ok:all:::", E::AfterMap("ok:all:::".into())),
            ("ok", E::Short("ok".into())),
        ] {
            assert_eq!(text.parse::<XattrMap>(), Err(error), "{text:?}");
        }
    }
}
