//! Debian's control file format (deb822): stanzas of `Field: value`, continued by indented lines.

/// The fields of one stanza, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stanza(Vec<(String, String)>);

impl Stanza {
    /// A field's value; names compare without case, as Debian policy 5.1 has it.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }
}

/// The stanzas of a text. Lines that fit nowhere are passed over: it is other programs' output.
pub(crate) fn stanzas(text: &str) -> Vec<Stanza> {
    let mut stanzas = vec![Stanza::default()];
    for line in text.lines() {
        if line.trim().is_empty() {
            if stanzas.last().is_some_and(|s| !s.0.is_empty()) {
                stanzas.push(Stanza::default());
            }
            continue;
        }
        let Some(stanza) = stanzas.last_mut() else { continue };
        if line.starts_with('#') {
            continue;
        }
        if line.starts_with([' ', '\t']) {
            if let Some((_, value)) = stanza.0.last_mut() {
                value.push('\n');
                value.push_str(line.trim());
            }
        } else if let Some((name, value)) = line.split_once(':') {
            stanza.0.push((name.trim().to_owned(), value.trim().to_owned()));
        }
    }
    stanzas.retain(|s| !s.0.is_empty());
    stanzas
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_without_case_and_continuations_belong_to_theirs() {
        let parsed = stanzas("\n\nPackage: a\nDescription: one\n two\n# no\n three\n\n\npackage: b\nnonsense\n");
        assert_eq!(parsed.len(), 2);
        assert_eq!(parsed[0].get("description"), Some("one\ntwo\nthree"));
        assert_eq!(parsed[1].get("Package"), Some("b"));
        assert_eq!(parsed[1].get("Version"), None);
    }
}
