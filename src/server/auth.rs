//! Who may connect: whoever has the token, or one that is signed with the secret.

use std::{
    fmt,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64_turbo::URL_SAFE_NO_PAD;
use hmac::{Hmac, Mac as _};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

/// What a client has to show with the WebSocket upgrade.
#[derive(Clone, Default)]
#[non_exhaustive]
pub enum Auth {
    /// Nothing. For loopback, where every user of the machine may connect then.
    #[default]
    None,
    /// `Authorization: Bearer` and this token.
    Token(String),
    /// `Authorization: Bearer` and a JSON Web Token signed with HS256.
    SignedToken(SignedToken),
}

/// What a signed token has to say.
#[derive(Clone)]
#[non_exhaustive]
pub struct SignedToken {
    /// What it is signed with.
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

#[derive(Deserialize)]
struct Header {
    alg: String,
}

#[derive(Deserialize)]
struct Claims {
    exp: i64,
    nbf: Option<i64>,
    iss: Option<String>,
    aud: Option<Audience>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Several(Vec<String>),
}

impl Auth {
    /// Checks the value of the `Authorization` header. The error is for the client, and says no secret.
    pub(super) fn check(&self, header: Option<&[u8]>) -> Result<(), &'static str> {
        if let Auth::None = self {
            return Ok(());
        }
        let header = header.ok_or("missing websocket bearer token")?;
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

impl SignedToken {
    fn check(&self, token: &str, now: Duration) -> Result<(), &'static str> {
        const INVALID: &str = "invalid websocket jwt";
        let seconds = |time: Duration| i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
        let (signed, signature) = token.rsplit_once('.').ok_or(INVALID)?;
        let (header, claims) = signed.split_once('.').ok_or(INVALID)?;
        let decode = |text: &str| URL_SAFE_NO_PAD.decode(text).map_err(|_| INVALID);
        let header: Header = serde_json::from_slice(&decode(header)?).map_err(|_| INVALID)?;
        if header.alg != "HS256" {
            return Err(INVALID);
        }
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.secret).map_err(|_| INVALID)?;
        mac.update(signed.as_bytes());
        mac.verify_slice(&decode(signature)?).map_err(|_| INVALID)?;
        let claims: Claims = serde_json::from_slice(&decode(claims)?).map_err(|_| INVALID)?;
        let (now, skew) = (seconds(now), seconds(self.clock_skew));
        if claims.exp.saturating_add(skew) < now {
            return Err("expired websocket jwt");
        }
        if claims.nbf.is_some_and(|nbf| nbf > now.saturating_add(skew)) {
            return Err("websocket jwt is not valid yet");
        }
        if self.issuer.is_some() && claims.iss != self.issuer {
            return Err("websocket jwt issuer mismatch");
        }
        let is_for_us = match (&self.audience, claims.aud) {
            (None, _) => true,
            (Some(us), Some(Audience::One(one))) => *us == one,
            (Some(us), Some(Audience::Several(several))) => several.contains(us),
            (Some(_), None) => false,
        };
        if !is_for_us {
            return Err("websocket jwt audience mismatch");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn the_token_is_asked_for_by_name() {
        let auth = Auth::Token("abc".into());
        assert_eq!(auth.check(Some(b"Bearer abc")), Ok(()));
        assert_eq!(auth.check(Some(b"bearer   abc ")), Ok(()));
        assert_eq!(auth.check(None), Err("missing websocket bearer token"));
        assert_eq!(
            auth.check(Some(b"Basic abc")),
            Err("invalid authorization header")
        );
        assert_eq!(
            auth.check(Some(b"Bearer abcd")),
            Err("invalid websocket bearer token")
        );
        assert_eq!(Auth::None.check(None), Ok(()));
        assert!(!format!("{auth:?}").contains("abc"));
    }

    fn token(header: Value, claims: Value, secret: &[u8]) -> String {
        let encode = |part: &[u8]| URL_SAFE_NO_PAD.encode(part);
        let signed = format!(
            "{}.{}",
            encode(header.to_string().as_bytes()),
            encode(claims.to_string().as_bytes())
        );
        let mut mac = Hmac::<Sha256>::new_from_slice(secret).unwrap();
        mac.update(signed.as_bytes());
        format!("{signed}.{}", encode(&mac.finalize().into_bytes()))
    }

    #[test]
    fn a_signed_token_is_good_while_it_lasts_and_for_whom_it_is() {
        let secret = [7; 32];
        let mut auth = SignedToken::new(secret);
        auth.issuer = Some("us".into());
        auth.audience = Some("me".into());
        let check = |header: Value, claims: Value, secret: &[u8]| {
            auth.check(&token(header, claims, secret), Duration::from_secs(1000))
        };
        let hs256 = || json!({"alg": "HS256", "typ": "JWT"});
        let good = json!({"exp": 1100, "iss": "us", "aud": ["you", "me"]});
        assert_eq!(check(hs256(), good.clone(), &secret), Ok(()));
        assert_eq!(
            check(
                hs256(),
                json!({"exp": 975, "iss": "us", "aud": "me"}),
                &secret
            ),
            Ok(())
        );
        for (claims, problem) in [
            (
                json!({"exp": 969, "iss": "us", "aud": "me"}),
                "expired websocket jwt",
            ),
            (
                json!({"exp": 1100, "nbf": 1031, "iss": "us", "aud": "me"}),
                "websocket jwt is not valid yet",
            ),
            (
                json!({"exp": 1100, "aud": "me"}),
                "websocket jwt issuer mismatch",
            ),
            (
                json!({"exp": 1100, "iss": "us", "aud": "you"}),
                "websocket jwt audience mismatch",
            ),
            (
                json!({"exp": 1100, "iss": "us"}),
                "websocket jwt audience mismatch",
            ),
            (json!({"iss": "us", "aud": "me"}), "invalid websocket jwt"),
        ] {
            assert_eq!(check(hs256(), claims, &secret), Err(problem));
        }
        let invalid = Err("invalid websocket jwt");
        assert_eq!(check(hs256(), good.clone(), &[8; 32]), invalid);
        assert_eq!(check(json!({"alg": "none"}), good, &secret), invalid);
        assert_eq!(auth.check("a.b", Duration::ZERO), invalid);
    }
}
