//! Configuration files, as HCL and as JSON, and what server and agent read in them.

use super::Target;

pub(super) const TARGETS: &[Target] = &[
    Target { name: "configuration", run: tree },
    Target { name: "configuration_server", run: server },
    Target { name: "configuration_agent", run: agent },
];

/// What the user reads names the file and a line that is in it.
fn assert_place(text: &str, error: &countersign_config::ConfigError) {
    let shown = error.to_string();
    let place = shown.strip_prefix("a.conf").expect("the file's name comes first");
    if let Some(numbered) = place.strip_prefix(':')
        && let Some(line) = numbered.split(':').next().and_then(|n| n.parse::<usize>().ok())
    {
        assert!((1..=text.lines().count() + 1).contains(&line), "line {line} of {}: {shown}", text.lines().count());
    }
}

fn read(bytes: &[u8], take: impl FnOnce(countersign_config::Section) -> Result<(), countersign_config::ConfigError>) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let expanded = countersign_config::expand(text, |key| (key.len() % 2 == 0).then(|| key.to_lowercase()));
    assert!(text.contains('$') || expanded == text, "nothing was there to be replaced");
    if let Err(error) = countersign_config::parse("a.conf", text).and_then(take) {
        assert_place(text, &error);
    }
}

fn tree(bytes: &[u8]) {
    read(bytes, |mut section| {
        // Each way of taking something out, of keys of every kind.
        let _ = section.string("text");
        let _ = section.boolean("switch");
        let _ = section.integer("number");
        let _ = section.port("port");
        let _ = section.duration("duration");
        let _ = section.strings("list");
        for (_, block) in section.labelled("labelled")? {
            block.finish()?;
        }
        if let Some(mut block) = section.section("block")? {
            let _ = block.take_any("anything");
            block.finish()?;
        }
        section.finish()
    });
}

fn server(bytes: &[u8]) {
    read(bytes, |section| countersign_server::Config::read(section).map(drop));
}

fn agent(bytes: &[u8]) {
    read(bytes, |section| countersign_agent::Config::read(section).map(drop));
}
