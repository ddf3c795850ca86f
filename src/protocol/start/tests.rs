use serde_json::json;

use super::*;
use crate::protocol::{
    Dialect, PathSpelling,
    jsonrpc::{encode_request, encoded_params},
};

#[test]
fn a_bare_start_sends_the_required_fields_only() {
    assert_eq!(
        encoded_params(PathSpelling::Plain, &StartProcess::new("p", ["true"], "/")),
        json!({"processId": "p", "argv": ["true"], "cwd": "/", "env": {}, "tty": false})
    );
}

#[test]
fn every_option_of_start_reaches_the_wire() {
    let mut policy = EnvironmentPolicy::new(InheritEnvironment::Core);
    policy.exclude.push("*_KEY".into());
    let start = StartProcess::new("p", ["sh", "-c", "true"], "/tmp")
        .env("A", "1")
        .envs([("B", "2")])
        .tty(true)
        .arg0("-sh")
        .pipe_stdin(true)
        .env_policy(policy)
        .shell_snapshot(ShellSnapshot::new("s", Shell::new("sh", "/bin/sh")))
        .metadata(ProcessMetadata {
            thread_id: Some("t".into()),
            tool_call_id: None,
        })
        .sandbox(Value::Null)
        .enforce_managed_network(false)
        .managed_network(json!({}))
        .network_proxy(json!({"proxy": {}}))
        .size(TerminalSize::new(5, 6));
    assert_eq!(
        encoded_params(PathSpelling::Plain, &start),
        json!({
            "processId": "p", "argv": ["sh", "-c", "true"], "cwd": "/tmp",
            "env": {"A": "1", "B": "2"}, "tty": true, "arg0": "-sh", "pipeStdin": true,
            "envPolicy": {"inherit": "core", "ignoreDefaultExcludes": false, "exclude": ["*_KEY"],
                          "set": {}, "includeOnly": []},
            "shellSnapshot": {"scopeId": "s", "shell": {"name": "sh", "path": "/bin/sh"}},
            "metadata": {"threadId": "t"}, "sandbox": null, "enforceManagedNetwork": false,
            "managedNetwork": {}, "networkProxy": {"proxy": {}},
            "size": {"rows": 5, "cols": 6},
        })
    );
}

#[test]
fn a_shell_sets_the_size_where_the_server_cannot() {
    let start = StartProcess::new("p", ["vi", "$x; y"], "/")
        .tty(true)
        .size(TerminalSize::new(5, 6));
    let mut capabilities = Capabilities::default();
    let temporary = Path::new("/t");
    let (adapted, record) = start.clone().adapted(&capabilities, temporary);
    assert_eq!(record, None);
    assert_eq!(adapted.supported_by(&capabilities), Ok(()));
    assert_eq!(
        encoded_params(PathSpelling::Plain, &adapted),
        json!({"processId": "p", "cwd": "/", "env": {}, "tty": true,
                   "argv": ["/bin/sh", "-c", format!("{SIZED}exec \"$@\""), "sh", "5", "6", "vi", "$x; y"]})
    );
    let (named, _) = start.clone().arg0("ed").adapted(&capabilities, temporary);
    let missing = named.supported_by(&capabilities).unwrap_err();
    assert_eq!(missing.capability, "resize");
    capabilities.resize = true;
    let (native, _) = start.adapted(&capabilities, temporary);
    let params = encoded_params(PathSpelling::Plain, &native);
    assert_eq!(
        (&params["argv"][0], &params["size"]["rows"]),
        (&json!("vi"), &json!(5))
    );
}

#[test]
fn a_shell_records_the_process_where_helpers_are_needed_and_wanted() {
    let temporary = Path::new("/t");
    let start = StartProcess::new("p", ["vi", "$x; y"], "/").tty(true);
    let mut capabilities = Capabilities::default();
    let (unwanted, record) = start.clone().adapted(&capabilities, temporary);
    let params = encoded_params(PathSpelling::Plain, &unwanted);
    assert_eq!((&params["argv"][0], record), (&json!("vi"), None));

    let start = start.helper_processes(true);
    let missing = start.supported_by(&capabilities).unwrap_err();
    assert_eq!(missing.capability, "signals");
    let (adapted, record) = start.clone().adapted(&capabilities, temporary);
    let record = record.unwrap();
    assert!(record.is_tty());
    assert_eq!(adapted.supported_by(&capabilities), Ok(()));
    let params = encoded_params(PathSpelling::Plain, &adapted);
    let argv = params["argv"].as_array().unwrap();
    assert_eq!(argv[3..], ["sh", "vi", "$x; y"].map(|text| json!(text)));
    let path = params["env"][record::VARIABLE].as_str().unwrap();
    assert_eq!(path, record.path());
    assert!(path.starts_with("/t/execmux-"));
    assert!(!params["argv"].to_string().contains(path), "ps shows those");
    let (_, another) = start.clone().adapted(&capabilities, temporary);
    assert_ne!(another.unwrap().path(), path);

    let named = start.clone().arg0("ed");
    let (named, record) = named.adapted(&capabilities, temporary);
    assert_eq!(record, None);
    assert!(named.supported_by(&capabilities).is_err());

    capabilities.signals = true;
    assert!(start.clone().adapted(&capabilities, temporary).1.is_some());
    capabilities.resize = true;
    let (native, record) = start.adapted(&capabilities, temporary);
    let params = encoded_params(PathSpelling::Plain, &native);
    assert_eq!((&params["argv"][0], record), (&json!("vi"), None));
    assert_eq!(native.supported_by(&capabilities), Ok(()));
}

#[test]
fn a_variable_that_a_shell_may_drop_keeps_the_shell_away() {
    let start = StartProcess::new("p", ["vi"], "/")
        .tty(true)
        .size(TerminalSize::new(5, 6))
        .helper_processes(true);
    let capabilities = Capabilities::default();
    let mut policy = EnvironmentPolicy::new(InheritEnvironment::Core);
    policy.set.insert("a.b".into(), "1".into());
    let dropped = ["a.b", "FOO-BAR", "1A", "Ä", ""].map(|name| start.clone().env(name, "1"));
    for start in dropped
        .into_iter()
        .chain([start.clone().env_policy(policy)])
    {
        let (adapted, record) = start.adapted(&capabilities, Path::new("/t"));
        assert_eq!(record, None);
        assert_eq!(adapted.supported_by(&capabilities), Ok(()));
        let params = encoded_params(PathSpelling::Plain, &adapted);
        assert_eq!(params["argv"], json!(["vi"]));
        assert_eq!(params.get("size"), None);
    }
    let kept = start.clone().env("_A1", "1");
    assert!(kept.adapted(&capabilities, Path::new("/t")).1.is_some());
    // What the server can it does.
    let start = start.env("a.b", "1");
    let capabilities = Capabilities {
        signals: true,
        resize: true,
        ..capabilities
    };
    let (native, _) = start.adapted(&capabilities, Path::new("/t"));
    assert_eq!(
        encoded_params(PathSpelling::Plain, &native)["size"]["rows"],
        5
    );
}

#[test]
fn a_start_without_a_program_is_refused() {
    let start = StartProcess::new("p", Vec::<String>::new(), "/");
    let error = encode_request(1, &start, Dialect::new(PathSpelling::Plain)).unwrap_err();
    assert!(matches!(error, InvalidRequest::EmptyArgv));
}

#[test]
fn p11_debug_shows_neither_arguments_nor_environment() {
    let start = StartProcess::new("p", ["login", "secret"], "/").env("TOKEN", "secret");
    let mut policy = EnvironmentPolicy::new(InheritEnvironment::None);
    policy.set.insert("TOKEN".into(), "secret".into());
    let shown = format!("{start:?} {policy:?}");
    assert!(!shown.contains("secret"), "{shown}");
}
