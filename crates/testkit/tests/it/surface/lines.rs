//! A trust domain from its first start to a banned agent, and the log lines that this makes.

use crate::support::Up;

use super::rows::rows;

/// As the rows name it.
const THIS: &str = "the_lines_of_a_life_cycle_are_those_of_the_reference";

#[test]
fn the_lines_of_a_life_cycle_are_those_of_the_reference() {
    let directory = tempfile::tempdir().unwrap();
    let logs = || ["server.log", "agent.log"].map(|name| std::fs::read_to_string(directory.path().join(name)).unwrap());
    let mut said: [String; 2] = Default::default();
    let mut hear = || said.iter_mut().zip(logs()).for_each(|(said, log)| said.push_str(&log));

    let up = Up::start(directory.path());
    up.ok(&["whoami"]);
    up.stop();
    hear();
    let mut up = Up::start(directory.path());
    let agents = up.json(&["agent", "list"]);
    let id = format!("spiffe://example.org{}", agents["agents"][0]["id"]["path"].as_str().unwrap());
    up.ok(&["agent", "ban", "--spiffe-id", &id]);
    assert_eq!(up.ended().0, Some(1));
    drop(up);
    hear();
    let up = Up::start(directory.path());
    up.ok(&["agent", "evict", "--spiffe-id", &id]);
    up.stop();
    hear();

    let [server, agent] = said;
    let rows: Vec<_> = rows("log-lines").into_iter().filter(|row| row.get("by") == THIS).collect();
    assert!(rows.len() > 10, "only {} rows name this test", rows.len());
    let missing: Vec<String> = rows
        .iter()
        .filter(|row| !if row.get("side") == "server" { &server } else { &agent }.contains(row.get("text")))
        .map(|row| format!("{}: `{}` is not said", row.place(), row.get("text")))
        .collect();
    assert!(missing.is_empty(), "{}\n\nserver:\n{server}\nagent:\n{agent}", missing.join("\n"));
}
