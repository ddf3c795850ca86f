//! The server in this program, for when no other is given.

use execmux::{
    Config,
    protocol::{EnvironmentPolicy, InheritEnvironment},
    server::{Auth, Server, ServerConfig},
};

use crate::problem::told;

/// Starts it, and returns how to connect to it. Only this program can: it asks for a token.
pub(crate) async fn start() -> Result<(Server, Config), String> {
    let token = token()?;
    let mut config = ServerConfig::new();
    config.auth = Auth::Token(token.clone());
    let server = Server::start(config)
        .await
        .map_err(|error| format!("cannot start a server in this program: {}", told(&error)))?;
    let mut config = Config::new(server.url());
    config.bearer_token = Some(token);
    Ok((server, config))
}

fn token() -> Result<String, String> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|error| format!("no random numbers: {error}"))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// What commands inherit that run here: everything, as from a shell.
pub(crate) fn whole_environment() -> EnvironmentPolicy {
    let mut policy = EnvironmentPolicy::new(InheritEnvironment::All);
    policy.ignore_default_excludes = true;
    policy
}
