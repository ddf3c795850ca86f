//! Secrets that a server must not take, and tokens that must let nobody in.

use std::time::Duration;

use execmux::server::{Auth, Server, ServerConfig, SignedToken};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::support::{checked, jwt, soon};

/// Contents of token files, with what the server says about them; `None` if it takes them.
const TOKENS: &[(&[u8], Option<&str>)] = &[
    (b"0123456789abcdef", None),
    (b"0123456789abcdef\r\n", None),
    (b" 0123456789 abcdef \n\n", None),
    (
        b"0123456789abcde\n",
        Some("the token is too short: at least 16 bytes"),
    ),
    (b"", Some("the token is too short")),
    (b"\n\n", Some("the token is too short")),
    (b"0123456789abcdef\n0123456789abcdef\n", Some("line break")),
    (b"0123456789abcdef\r0123456789abcdef", Some("line break")),
    (b"0123456789abcdef\0", Some("NUL byte")),
    (b"\0\x000123456789abcdef", Some("NUL byte")),
    (b"\xEF\xBB\xBF0123456789abcdef\n", Some("byte order mark")),
    (b"0123456789abcdef\xEF\xBB\xBF", Some("byte order mark")),
    (b"\xFF\xFE0\x001\x002\x003\x00", Some("byte order mark")),
    (b"0123456789abcdef\t0", Some("control character")),
    (b"0123456789abcdef\x1B[0m", Some("control character")),
    (b"0123456789abcdef\x7F0", Some("control character")),
    ("0123456789abcdefä".as_bytes(), Some("beyond ASCII")),
    (b"0123456789abcdef\xFF", Some("not UTF-8")),
];

async fn start(auth: Auth) -> Result<Server, String> {
    let mut config = ServerConfig::new();
    config.auth = auth;
    soon(Server::start(config))
        .await
        .map_err(|error| error.to_string())
}

#[actix::test]
async fn a_token_that_no_client_could_send_or_anybody_could_guess_is_refused() {
    checked(async {
        for (content, problem) in TOKENS {
            // A library is given text, without what an editor puts around it.
            let Ok(token) = std::str::from_utf8(content.trim_ascii()) else {
                continue;
            };
            match (start(Auth::Token(token.to_owned())).await, problem) {
                (Ok(server), None) => soon(server.stop()).await,
                (Err(said), Some(problem)) => {
                    assert!(said.contains(problem), "{said}");
                    assert!(token.is_empty() || !said.contains(token), "{said}");
                }
                (started, _) => panic!("{token:?} {problem:?}: {started:?}"),
            }
        }
        let said = start(Auth::Token(" 0123456789abcdef".to_owned())).await;
        assert!(said.unwrap_err().contains("white space"));
    })
    .await;
}

#[actix::test]
async fn a_secret_that_was_not_saved_as_it_was_meant_is_refused() {
    checked(async {
        const LONG: &str = "0123456789abcdef0123456789abcdef";
        let with = |before: &[u8], after: &[u8]| [before, LONG.as_bytes(), after].concat();
        for (secret, problem) in [
            (with(b"", b""), None),
            (with(b"\x80\n\0", b"\n\0"), None),
            (LONG.as_bytes()[1..].to_vec(), Some("at least 32 bytes")),
            (with(b"\xEF\xBB\xBF", b""), Some("byte order mark")),
            (with(b"\xFE\xFF", b""), Some("byte order mark")),
            (with(b"", b"\nmore"), Some("line break")),
            (with(b"", b"\0"), Some("NUL byte")),
        ] {
            match (
                start(Auth::SignedToken(SignedToken::new(secret.clone()))).await,
                problem,
            ) {
                (Ok(server), None) => soon(server.stop()).await,
                (Err(said), Some(problem)) => assert!(said.contains(problem), "{said}"),
                (started, _) => panic!("{secret:?} {problem:?}: {started:?}"),
            }
        }
    })
    .await;
}

/// Asks for the upgrade with these headers. Returns the status and the body.
async fn ask(server: &Server, headers: &str) -> (String, String) {
    let mut socket = soon(TcpStream::connect(server.address())).await.unwrap();
    let request = format!("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n");
    soon(socket.write_all(request.as_bytes())).await.unwrap();
    let mut answer = String::new();
    soon(socket.read_to_string(&mut answer)).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap();
    (status.to_owned(), body.to_owned())
}

const SECRET: [u8; 32] = [7; 32];
const INVALID: &str = "invalid websocket jwt";

/// Headers and claims of tokens that are signed with the right secret. `EXP` stands for a time that is yet to come.
const FORGED: &[(&str, &str)] = &[
    (r#"{"alg":"none"}"#, r#"{"exp":EXP}"#),
    (r#"{"alg":"hs256"}"#, r#"{"exp":EXP}"#),
    (r#"{"alg":"HS384"}"#, r#"{"exp":EXP}"#),
    (r#"{"alg":"none","alg":"HS256"}"#, r#"{"exp":EXP}"#),
    (r#"{"alg":"HS256","crit":["exp"]}"#, r#"{"exp":EXP}"#),
    (
        r#"{"alg":"HS256","crit":["b64"],"b64":true}"#,
        r#"{"exp":EXP}"#,
    ),
    (r#"{"alg":"HS256","typ":["JWT"]}"#, r#"{"exp":EXP}"#),
    (r#"{"alg":"HS256","x":1,"x":2}"#, r#"{"exp":EXP}"#),
    (r#"{"alg":"HS256"}"#, "{}"),
    (r#"{"alg":"HS256"}"#, r#"{"exp":"EXP"}"#),
    (r#"{"alg":"HS256"}"#, r#"{"exp":EXP.5}"#),
    (r#"{"alg":"HS256"}"#, r#"{"exp":1,"exp":EXP}"#),
    (r#"{"alg":"HS256"}"#, r#"{"exp":EXP,"iat":"now"}"#),
    (r#"{"alg":"HS256"}"#, r#"{"exp":EXP,"nbf":null}"#),
    (r#"{"alg":"HS256"}"#, r#"{"exp":EXP,"aud":7}"#),
    (r#"{"alg":"HS256"}"#, r#"{"exp":EXP,"aud":[7]}"#),
    (r#"{"alg":"HS256"}"#, r#"{"exp":EXP,"iss":["us"]}"#),
    (r#"{"alg":"HS256"}"#, r#"{"exp":EXP,"sub":7}"#),
    (r#"{"alg":"HS256"}"#, r#"{"exp":EXP,"x":1,"x":2}"#),
    (r#"{"alg":"HS256"}"#, r#"[EXP]"#),
];

#[actix::test]
async fn a_signed_token_that_is_not_wholly_understood_lets_nobody_in() {
    checked(async {
        let server = start(Auth::SignedToken(SignedToken::new(SECRET)))
            .await
            .unwrap();
        let exp = jwt::seconds_from_now(Duration::from_secs(600)).to_string();
        let sign = |(header, claims): (&str, &str)| {
            jwt::sign_text(header, &claims.replace("EXP", &exp), &SECRET)
        };
        let good = sign((r#"{"alg":"HS256"}"#, r#"{"exp":EXP}"#));
        let mut forged: Vec<String> = FORGED.iter().copied().map(sign).collect();
        // The same signature, spelled otherwise: the last character has two bits to spare.
        let (rest, last) = good.split_at(good.len() - 1);
        let alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        let at = alphabet.find(last).unwrap();
        forged.extend((1..4).map(|bits| format!("{rest}{}", &alphabet[at + bits..=at + bits])));
        forged.extend([format!("{good}="), format!("{good}."), format!("{good}.x")]);
        for token in forged {
            let answer = ask(&server, &format!("Authorization: Bearer {token}\r\n")).await;
            assert_eq!((&*answer.0, &*answer.1), ("401", INVALID), "{token}");
        }
        let right = format!("Authorization: Bearer {good}\r\n");
        assert_eq!(
            ask(&server, &right).await.0,
            "400",
            "only the upgrade is missing"
        );
        let twice = ask(&server, &format!("{right}{right}")).await;
        assert_eq!(
            (&*twice.0, &*twice.1),
            ("401", "invalid authorization header")
        );
        soon(server.stop()).await;
    })
    .await;
}

#[cfg(feature = "cli")]
mod program {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use super::*;
    use crate::support::program::{Directory, Serving, execmux, said};

    #[actix::test]
    async fn a_token_file_that_no_client_could_use_is_refused_by_name() {
        let directory = Directory::new();
        let file = directory.at("token");
        for (content, problem) in TOKENS {
            fs::write(&file, content).unwrap();
            let Some(problem) = problem else {
                let serving = Serving::start(&["--token-file", &file]).await;
                serving.stop().await;
                continue;
            };
            let command = execmux(&["serve", "--token-file", &file]).output();
            let (code, stdout, stderr) = said(&soon(command).await.unwrap());
            assert_eq!((code, &*stdout), (Some(125), ""), "{content:?}");
            // Of what is no text at all, that is said.
            let is_said = stderr.contains(problem) || stderr.contains("byte order mark");
            assert!(is_said && stderr.contains(&file), "{content:?}: {stderr}");
            assert_eq!(stderr.lines().count(), 1, "{stderr}");
        }
    }

    #[actix::test]
    async fn a_token_file_that_everybody_can_read_is_warned_of() {
        let directory = Directory::new();
        let file = directory.at("token");
        fs::write(&file, "0123456789abcdef").unwrap();
        for (mode, is_warned) in [(0o600, false), (0o640, false), (0o644, true), (0o604, true)] {
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
            let serving = Serving::start_with_log(&["--token-file", &file]).await;
            let log = serving.stop_and_read_log().await;
            assert_eq!(log.contains("every user"), is_warned, "{mode:o}: {log}");
            assert!(!log.contains("0123456789abcdef"), "{log}");
        }
    }
}
