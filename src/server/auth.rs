//! Who may connect: whoever has the token, or one that is signed with the secret.

mod jwt;

use std::{
    fmt,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use sha2::{Digest as _, Sha256};

/// What a client has to show with the WebSocket upgrade.
#[derive(Clone, Default)]
#[non_exhaustive]
pub enum Auth {
    /// Nothing. For loopback, where every user of the machine may connect then.
    #[default]
    None,
    /// `Authorization: Bearer` and this token: 16 bytes or more of visible ASCII, also with spaces inside.
    Token(String),
    /// `Authorization: Bearer` and a JSON Web Token signed with HS256.
    SignedToken(SignedToken),
}

/// What a signed token has to say.
#[derive(Clone)]
#[non_exhaustive]
pub struct SignedToken {
    /// What it is signed with: 32 bytes or more. If they are text, it is one line.
    pub secret: Vec<u8>,
    /// Its `iss`, if that matters.
    pub issuer: Option<String>,
    /// What its `aud` has to be or contain, if that matters.
    pub audience: Option<String>,
    /// How far clocks may differ. 30 s by default.
    pub clock_skew: Duration,
}

impl SignedToken {
    /// Takes tokens signed with `secret`, from anyone for anyone.
    pub fn new(secret: impl Into<Vec<u8>>) -> Self {
        SignedToken {
            secret: secret.into(),
            issuer: None,
            audience: None,
            clock_skew: Duration::from_secs(30),
        }
    }
}

impl fmt::Debug for SignedToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SignedToken")
            .field("issuer", &self.issuer)
            .field("audience", &self.audience)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Auth::None => "None",
            Auth::Token(_) => "Token(…)",
            Auth::SignedToken(_) => "SignedToken(…)",
        })
    }
}

/// The shortest token, and the shortest secret that tokens may be signed with.
const LEAST_TOKEN: usize = 16;
const LEAST_SECRET: usize = 32;

/// What is wrong with a token or a secret that clients could not use, or that is easy to guess.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unfit {
    Short {
        what: &'static str,
        least: usize,
    },
    Unusable {
        what: &'static str,
        problem: &'static str,
    },
}

impl Auth {
    /// Looks whether clients can show what they have to, and nobody else can guess it.
    pub(super) fn unfit(&self) -> Option<Unfit> {
        let (what, bytes, least) = match self {
            Auth::None => return None,
            Auth::Token(token) => ("token", token.as_bytes(), LEAST_TOKEN),
            Auth::SignedToken(signed) => ("secret", &*signed.secret, LEAST_SECRET),
        };
        let problem = match self {
            Auth::Token(_) => token_problem(bytes),
            // A secret is not sent, and need not be text.
            Auth::None | Auth::SignedToken(_) => text_problem(bytes),
        };
        if let Some(problem) = problem {
            return Some(Unfit::Unusable { what, problem });
        }
        (bytes.len() < least).then_some(Unfit::Short { what, least })
    }

    /// Says who may connect.
    pub(super) fn clients(&self) -> &'static str {
        match self {
            Auth::None => "everyone",
            Auth::Token(_) => "who shows the token",
            Auth::SignedToken(_) => "who shows a signed token",
        }
    }

    /// Checks the values of the `Authorization` headers. The error is for the client, and says no secret.
    pub(super) fn check<'a>(
        &self,
        mut headers: impl Iterator<Item = &'a [u8]>,
    ) -> Result<(), &'static str> {
        if let Auth::None = self {
            return Ok(());
        }
        let header = headers.next().ok_or("missing websocket bearer token")?;
        if headers.next().is_some() {
            // Which of them is meant, a proxy in between may see otherwise.
            return Err("invalid authorization header");
        }
        let header = std::str::from_utf8(header).map_err(|_| "invalid authorization header")?;
        let token = match header.trim().split_once(' ') {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => token.trim(),
            _ => return Err("invalid authorization header"),
        };
        match self {
            Auth::None => Ok(()),
            // Of digests, the time that the comparison takes says nothing about the token.
            Auth::Token(expected) if Sha256::digest(token) == Sha256::digest(expected) => Ok(()),
            Auth::Token(_) => Err("invalid websocket bearer token"),
            Auth::SignedToken(signed) => {
                let now = SystemTime::now()
                    .duration_since(UNIX_EPOCH)
                    .unwrap_or_default();
                signed.check(token, now)
            }
        }
    }
}

/// Returns what keeps a token from being sent in a header as it is, and what to do about it.
fn token_problem(token: &[u8]) -> Option<&'static str> {
    if let Some(problem) = text_problem(token) {
        return Some(problem);
    }
    if token.trim_ascii() != token {
        return Some("it begins or ends with white space, which no header carries: remove that");
    }
    if token.iter().any(u8::is_ascii_control) {
        return Some("it holds a control character, which no header carries: make a new one");
    }
    if !token.is_ascii() {
        return Some(
            "it holds characters beyond ASCII, which not every header carries: make a new one",
        );
    }
    None
}

/// Returns what shows that a file was not saved as the one line of text that it is to be, and what to do about it.
/// Bytes that are no text are no such thing.
fn text_problem(bytes: &[u8]) -> Option<&'static str> {
    const MARKS: [&[u8]; 3] = [b"\xEF\xBB\xBF", b"\xFF\xFE", b"\xFE\xFF"];
    if MARKS.iter().any(|mark| bytes.starts_with(mark)) {
        return Some("it begins with a byte order mark: save it as plain text without one");
    }
    let text = std::str::from_utf8(bytes).ok()?;
    if text.contains('\u{FEFF}') {
        return Some("it holds a byte order mark: save it as plain text without one");
    }
    if text.contains('\0') {
        return Some("it holds a NUL byte: save it as plain text");
    }
    if text.contains(['\n', '\r']) {
        return Some("it holds a line break: leave one line");
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(auth: &Auth, headers: &[&[u8]]) -> Result<(), &'static str> {
        auth.check(headers.iter().copied())
    }

    #[test]
    fn the_token_is_asked_for_by_name() {
        let auth = Auth::Token("abc".into());
        assert_eq!(check(&auth, &[b"Bearer abc"]), Ok(()));
        assert_eq!(check(&auth, &[b"bearer   abc "]), Ok(()));
        assert_eq!(check(&auth, &[]), Err("missing websocket bearer token"));
        for refused in [
            &[&b"Basic abc"[..]][..],
            &[b"Bearer"],
            &[b"Bearer\xFF abc"],
            &[b"Bearer abc", b"Bearer abc"],
        ] {
            assert_eq!(check(&auth, refused), Err("invalid authorization header"));
        }
        assert_eq!(
            check(&auth, &[b"Bearer abcd"]),
            Err("invalid websocket bearer token")
        );
        assert_eq!(check(&Auth::None, &[]), Ok(()));
        assert!(!format!("{auth:?}").contains("abc"));
    }
}
