//! Signed tokens, as somebody else would make them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64_simd::URL_SAFE_NO_PAD;
use hmac::{Hmac, Mac as _};
use serde_json::{Value, json};
use sha2::Sha256;

/// So many seconds since 1970 as the time will be `after` from now.
pub fn seconds_from_now(after: Duration) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    (now + after).as_secs()
}

/// Signs `claims` with HS256.
pub fn sign(claims: &Value, secret: &[u8]) -> String {
    let header = json!({"alg": "HS256", "typ": "JWT"}).to_string();
    sign_text(&header, &claims.to_string(), secret)
}

/// Signs a header and claims as they are spelled here.
pub fn sign_text(header: &str, claims: &str, secret: &[u8]) -> String {
    let encode = |part: &[u8]| URL_SAFE_NO_PAD.encode_to_string(part);
    let signed = format!(
        "{}.{}",
        encode(header.as_bytes()),
        encode(claims.as_bytes())
    );
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).unwrap();
    mac.update(signed.as_bytes());
    format!("{signed}.{}", encode(&mac.finalize().into_bytes()))
}
