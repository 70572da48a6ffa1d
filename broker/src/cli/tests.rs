//! The command line as a whole, without a broker.

use super::*;

fn server() -> Server {
    Server {
        dev: |args, output| {
            let json = u16::from(output == OutputFormat::Json);
            ExitCode::from(u8::try_from(args.shards + 100 * json).unwrap())
        },
        serve: |args, output| {
            let json = usize::from(output == OutputFormat::Json);
            ExitCode::from(u8::try_from(args.set.len() + 100 * json).unwrap())
        },
        doctor: |_, output| ExitCode::from(u8::from(output == OutputFormat::Json)),
    }
}

fn code(line: &str) -> String {
    let args = line.split_whitespace().map(OsString::from);
    format!("{:?}", run(args, &server()))
}

fn expected(code: u8) -> String {
    format!("{:?}", ExitCode::from(code))
}

#[test]
fn commands_of_the_server_are_handed_over() {
    assert_eq!(code("corelog dev --shards 7"), expected(7));
    assert_eq!(code("corelog serve --config c.toml --set a.b=c --set d.e=f"), expected(2));
    assert_eq!(code("corelog dev --shards 7 --output json"), expected(107));
    assert_eq!(code("corelog --output json serve --config c.toml"), expected(100));
    assert_eq!(code("corelog doctor --output json"), expected(1));
    assert_eq!(code("corelog --output json doctor"), expected(1));
}

#[test]
fn a_wrong_command_line_is_a_matter_of_usage() {
    for line in [
        "corelog",
        "corelog nonsense",
        "corelog serve",
        "corelog consume t --from never",
        "corelog dev --shards 0",
    ] {
        assert_eq!(code(line), expected(2), "{line}");
    }
    assert_eq!(code("corelog --version"), expected(0));
    assert_eq!(code("corelog produce --help"), expected(0));
}

#[test]
fn json_is_wanted_wherever_it_is_asked_for() {
    let wants = |line: &str| wants_json(&line.split_whitespace().map(OsString::from).collect::<Vec<_>>());
    for line in
        ["corelog --output json nonsense", "corelog topic list --output=json --x", "c topic --output json"]
    {
        assert!(wants(line), "{line}");
    }
    for line in ["corelog nonsense", "corelog --output text json", "corelog produce t -- --output json"] {
        assert!(!wants(line), "{line}");
    }
}

#[test]
fn a_broker_that_is_not_there_is_unreachable() {
    // Port 9 of the loopback is bound by nobody.
    assert_eq!(code("corelog topic list --bootstrap 127.0.0.1:9"), expected(4));
    assert_eq!(code("corelog consume t --bootstrap 127.0.0.1:9"), expected(4));
    assert_eq!(code("corelog consume t --bootstrap nonsense"), expected(2));
}

#[test]
fn an_input_that_is_not_there_is_a_matter_of_usage() {
    assert_eq!(code("corelog produce t --file /nonexistent/file --bootstrap 127.0.0.1:9"), expected(2));
}
