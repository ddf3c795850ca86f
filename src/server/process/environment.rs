//! The environment of a process: what it inherits from the server, and what is laid over it.

use std::collections::BTreeMap;

use serde::Deserialize;
use wildmatch::WildMatchPattern;

/// What a process inherits.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Policy {
    inherit: Inherit,
    ignore_default_excludes: bool,
    exclude: Vec<String>,
    set: BTreeMap<String, String>,
    include_only: Vec<String>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Inherit {
    Core,
    All,
    None,
}

/// What programs need to run at all.
const CORE: [&str; 9] = [
    "HOME", "LOGNAME", "PATH", "SHELL", "USER", "USERNAME", "TMPDIR", "TEMP", "TMP",
];
/// What mostly holds secrets.
const DEFAULT_EXCLUDES: [&str; 3] = ["*KEY*", "*SECRET*", "*TOKEN*"];

impl Policy {
    /// Chooses from the variables of the server.
    pub(super) fn apply(
        self,
        variables: impl Iterator<Item = (String, String)>,
    ) -> BTreeMap<String, String> {
        let mut kept: BTreeMap<_, _> = variables
            .filter(|(name, _)| match self.inherit {
                Inherit::Core => CORE.contains(&name.as_str()),
                Inherit::All => true,
                Inherit::None => false,
            })
            .filter(|(name, _)| {
                self.ignore_default_excludes || !matches_any(&DEFAULT_EXCLUDES, name)
            })
            .filter(|(name, _)| !matches_any(&self.exclude, name))
            .collect();
        kept.extend(self.set);
        if !self.include_only.is_empty() {
            kept.retain(|name, _| matches_any(&self.include_only, name));
        }
        kept
    }
}

fn matches_any(patterns: &[impl AsRef<str>], name: &str) -> bool {
    patterns.iter().any(|pattern| {
        WildMatchPattern::<'*', '?'>::new_case_insensitive(pattern.as_ref()).matches(name)
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn names(policy: serde_json::Value) -> Vec<String> {
        let policy: Policy = serde_json::from_value(policy).unwrap();
        let server = ["PATH", "HOME", "EDITOR", "api_key", "GITHUB_TOKEN"];
        let variables = server.map(|name| (name.to_owned(), "x".to_owned()));
        policy.apply(variables.into_iter()).into_keys().collect()
    }

    #[test]
    fn a_policy_chooses_what_is_inherited() {
        let policy = |inherit: &str, ignore: bool, exclude: &[&str], only: &[&str]| {
            names(
                json!({"inherit": inherit, "ignoreDefaultExcludes": ignore, "exclude": exclude,
                "set": {"SET": "1"}, "includeOnly": only}),
            )
        };
        assert_eq!(policy("core", false, &[], &[]), ["HOME", "PATH", "SET"]);
        assert_eq!(policy("none", false, &[], &[]), ["SET"]);
        assert_eq!(policy("all", false, &["ed*"], &[]), ["HOME", "PATH", "SET"]);
        let all = ["EDITOR", "GITHUB_TOKEN", "HOME", "PATH", "SET", "api_key"];
        assert_eq!(policy("all", true, &[], &[]), all);
        assert_eq!(policy("all", true, &[], &["?ATH", "s*"]), ["PATH", "SET"]);
    }
}
