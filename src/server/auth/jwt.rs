//! JSON Web Tokens that are signed with HS256 (RFC 7515, 7519), read strictly: what is not understood is refused.
//!
//! No crate is both lean and as strict: they pass over `crit` and over members that occur twice.

use std::time::Duration;

use base64_turbo::URL_SAFE_NO_PAD;
use hmac::{Hmac, Mac as _};
use serde_json::{Map, Value};
use sha2::Sha256;

use super::SignedToken;
use crate::server::envelope;

const INVALID: &str = "invalid websocket jwt";

type Object = Map<String, Value>;

/// What the claims say that matters here. Each claim that is registered has the form that it is to have.
#[derive(Debug, PartialEq, Eq)]
struct Claims {
    exp: i64,
    nbf: Option<i64>,
    iss: Option<String>,
    aud: Vec<String>,
}

impl SignedToken {
    pub(super) fn check(&self, token: &str, now: Duration) -> Result<(), &'static str> {
        let seconds = |time: Duration| i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
        let claims = self.verified(token).ok_or(INVALID)?;
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
        if let Some(us) = &self.audience
            && !claims.aud.contains(us)
        {
            return Err("websocket jwt audience mismatch");
        }
        Ok(())
    }

    /// Returns what a token says, if it is signed with the secret and says it as it should.
    fn verified(&self, token: &str) -> Option<Claims> {
        let (signed, signature) = token.rsplit_once('.')?;
        let (header, claims) = signed.split_once('.')?;
        check_header(&object(header)?)?;
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.secret).ok()?;
        mac.update(signed.as_bytes());
        mac.verify_slice(&decode(signature)?).ok()?;
        Claims::of(object(claims)?)
    }
}

/// Decodes a part in its only spelling: the bits that the last character has left over are zero.
fn decode(part: &str) -> Option<Vec<u8>> {
    let bytes = URL_SAFE_NO_PAD.decode(part).ok()?;
    (URL_SAFE_NO_PAD.encode(&bytes) == part).then_some(bytes)
}

/// Decodes a part that is a JSON object, in which nothing occurs twice.
fn object(part: &str) -> Option<Object> {
    let bytes = decode(part)?;
    envelope::check(&bytes).ok()?;
    serde_json::from_slice(&bytes).ok()
}

fn check_header(header: &Object) -> Option<()> {
    let is_hs256 = header.get("alg").and_then(Value::as_str) == Some("HS256");
    // Whatever is critical is not understood here, and an empty list is not allowed.
    let is_understood = !header.contains_key("crit");
    let texts = ["typ", "cty", "kid"];
    let is_well_formed = texts
        .iter()
        .all(|name| header.get(*name).is_none_or(Value::is_string));
    (is_hs256 && is_understood && is_well_formed).then_some(())
}

impl Claims {
    fn of(mut claims: Object) -> Option<Self> {
        let is_well_formed = claims.get("iat").is_none_or(Value::is_number)
            && ["sub", "jti"]
                .iter()
                .all(|name| claims.get(*name).is_none_or(Value::is_string));
        if !is_well_formed {
            return None;
        }
        let text = |value| match value {
            Value::String(text) => Some(text),
            _ => None,
        };
        let aud = match claims.remove("aud") {
            None => Vec::new(),
            Some(Value::Array(several)) => several.into_iter().map(text).collect::<Option<_>>()?,
            Some(one) => vec![text(one)?],
        };
        Some(Claims {
            exp: claims.get("exp")?.as_i64()?,
            nbf: match claims.get("nbf") {
                None => None,
                Some(nbf) => Some(nbf.as_i64()?),
            },
            iss: match claims.remove("iss") {
                None => None,
                Some(iss) => Some(text(iss)?),
            },
            aud,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const SECRET: [u8; 32] = [7; 32];
    const NOW: Duration = Duration::from_secs(1000);

    /// Signs a header and claims as they are spelled here.
    fn sign(header: &str, claims: &str, secret: &[u8]) -> String {
        let encode = |part: &[u8]| URL_SAFE_NO_PAD.encode(part);
        let signed = format!(
            "{}.{}",
            encode(header.as_bytes()),
            encode(claims.as_bytes())
        );
        let mut mac = Hmac::<Sha256>::new_from_slice(secret).unwrap();
        mac.update(signed.as_bytes());
        format!("{signed}.{}", encode(&mac.finalize().into_bytes()))
    }

    const HS256: &str = r#"{"alg":"HS256","typ":"JWT"}"#;

    fn ours() -> SignedToken {
        let mut auth = SignedToken::new(SECRET);
        auth.issuer = Some("us".into());
        auth.audience = Some("me".into());
        auth
    }

    #[test]
    fn a_signed_token_is_good_while_it_lasts_and_for_whom_it_is() {
        let check = |claims: Value| ours().check(&sign(HS256, &claims.to_string(), &SECRET), NOW);
        let good = json!({"exp": 1100, "iss": "us", "aud": ["you", "me"]});
        assert_eq!(check(good), Ok(()));
        assert_eq!(check(json!({"exp": 975, "iss": "us", "aud": "me"})), Ok(()));
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
                json!({"exp": 1100, "iss": "us", "aud": []}),
                "websocket jwt audience mismatch",
            ),
            (
                json!({"exp": 1100, "iss": "us"}),
                "websocket jwt audience mismatch",
            ),
            (json!({"iss": "us", "aud": "me"}), INVALID),
        ] {
            assert_eq!(check(claims), Err(problem));
        }
    }

    #[test]
    fn a_token_that_says_what_is_not_understood_is_refused() {
        let auth = SignedToken::new(SECRET);
        let check = |header: &str, claims: &str| auth.check(&sign(header, claims, &SECRET), NOW);
        let good = r#"{"exp":1100}"#;
        assert_eq!(check(HS256, good), Ok(()));
        assert_eq!(
            auth.check(&sign(HS256, good, &[8; 32]), NOW),
            Err(INVALID),
            "another's signature"
        );
        for header in [
            r#"{"alg":"none"}"#,
            r#"{"alg":"hs256"}"#,
            r#"{"alg":"HS256 "}"#,
            r#"{"alg":"HS512"}"#,
            r#"{"alg":["HS256"]}"#,
            r#"{"alg":null}"#,
            r#"{"Alg":"HS256"}"#,
            r#"{"alg":"none","alg":"HS256"}"#,
            r#"{"alg":"HS256","alg":"HS256"}"#,
            r#"{"alg":"HS256","crit":["exp"]}"#,
            r#"{"alg":"HS256","crit":["b64"],"b64":false}"#,
            r#"{"alg":"HS256","crit":[]}"#,
            r#"{"alg":"HS256","crit":null}"#,
            r#"{"alg":"HS256","typ":7}"#,
            r#"{"alg":"HS256","jwk":{"k":1,"k":2}}"#,
            r#"["HS256"]"#,
            r#"{"alg":"HS256"} {}"#,
            "",
        ] {
            assert_eq!(check(header, good), Err(INVALID), "{header}");
        }
        for claims in [
            r#"{"exp":"1100"}"#,
            r#"{"exp":1100.5}"#,
            r#"{"exp":1e4}"#,
            r#"{"exp":null}"#,
            r#"{"exp":true}"#,
            r#"{"exp":99999999999999999999}"#,
            r#"{"exp":1,"exp":1100}"#,
            r#"{"exp":1100,"nbf":"0"}"#,
            r#"{"exp":1100,"nbf":null}"#,
            r#"{"exp":1100,"iat":"0"}"#,
            r#"{"exp":1100,"iat":null}"#,
            r#"{"exp":1100,"iss":["us"]}"#,
            r#"{"exp":1100,"iss":null}"#,
            r#"{"exp":1100,"aud":7}"#,
            r#"{"exp":1100,"aud":null}"#,
            r#"{"exp":1100,"aud":{"me":1}}"#,
            r#"{"exp":1100,"aud":["me",7]}"#,
            r#"{"exp":1100,"sub":7}"#,
            r#"{"exp":1100,"jti":{}}"#,
            r#"{"exp":1100,"x":{"y":1,"y":2}}"#,
            "[1100]",
            "1100",
            "",
        ] {
            assert_eq!(check(HS256, claims), Err(INVALID), "{claims}");
        }
    }

    #[test]
    fn a_token_has_one_spelling() {
        let auth = SignedToken::new(SECRET);
        let token = sign(HS256, r#"{"exp":1100}"#, &SECRET);
        assert_eq!(auth.check(&token, NOW), Ok(()));
        let (rest, last) = token.split_at(token.len() - 1);
        // Of the last character, two bits are of no use: three more spell the same signature.
        let alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        for other in alphabet.chars().filter(|other| !last.contains(*other)) {
            assert_eq!(auth.check(&format!("{rest}{other}"), NOW), Err(INVALID));
        }
        let (signed, signature) = token.rsplit_once('.').unwrap();
        for token in [
            format!("{token}="),
            format!("{token}\n"),
            format!("{token}."),
            format!(".{token}"),
            format!("{signed}."),
            signed.to_owned(),
            format!("{signed}..{signature}"),
            token.replace('.', ".."),
            "a.b".to_owned(),
            "..".to_owned(),
            String::new(),
        ] {
            assert_eq!(auth.check(&token, NOW), Err(INVALID), "{token:?}");
        }
    }
}
