//! Records `countersign up --demo` as a moving picture of a terminal: lines of an SVG that appear when they did.

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::{Failure, run, say};

/// Where it goes, as the README shows it.
const PICTURE: &str = "docs/demo.svg";
/// Size of a letter, and room around the text, in the picture's own units.
const COLUMN: f64 = 8.4;
const ROW: f64 = 20.0;
const MARGIN: f64 = 16.0;
/// Colours of a dark terminal that can be told apart on it, by the number of the escape sequence.
const COLOURS: &[(&str, &str)] = &[("31", "#ff7b72"), ("32", "#7ee787"), ("34", "#79c0ff"), ("36", "#76e3ea")];

/// A line and when it came.
#[derive(Debug)]
struct Line {
    at: Duration,
    text: String,
}

/// Runs the demo once and writes the picture.
pub(crate) fn record(root: &Path) -> Result<(), Failure> {
    run("cargo", &["build", "--package", "countersign", "--locked"], &[])?;
    let programs = root.join("target/debug");
    let path = std::env::join_paths(
        std::iter::once(programs.clone()).chain(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())),
    )?;
    say("$ countersign up --demo");
    // Found by its name, so that the picture shows no path of this machine.
    let mut child = Command::new(programs.join("countersign"))
        .args(["up", "--demo", "--color", "always"])
        .env("PATH", path)
        .env_remove("COUNTERSIGN_DEMO_FAST")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let begun = Instant::now();
    let mut lines =
        vec![Line { at: Duration::ZERO, text: "$ countersign up --demo".to_owned() }, Line { at: Duration::ZERO, text: String::new() }];
    let stdout = child.stdout.take().ok_or("the demo has no output")?;
    for text in BufReader::new(stdout).lines() {
        let text = text?;
        say(&text);
        lines.push(Line { at: begun.elapsed(), text });
    }
    let status = child.wait()?;
    if !status.success() {
        return Err(format!("the demo failed: {status}").into());
    }
    std::fs::write(root.join(PICTURE), picture(&lines)?)?;
    say(&format!("{PICTURE} is written"));
    Ok(())
}

/// A piece of a line in one style.
#[derive(Debug, PartialEq, Eq)]
struct Piece {
    text: String,
    is_bold: bool,
    colour: Option<&'static str>,
}

/// Takes a line apart at its escape sequences.
fn pieces(line: &str) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let (mut is_bold, mut colour) = (false, None);
    for (index, part) in line.split("\u{1b}[").enumerate() {
        let text = match (index, part.split_once('m')) {
            (0, _) | (_, None) => part,
            (_, Some((code, rest))) => {
                match code {
                    "0" | "" => (is_bold, colour) = (false, None),
                    "1" => is_bold = true,
                    code => colour = COLOURS.iter().find(|(number, _)| *number == code).map(|(_, colour)| *colour),
                }
                rest
            }
        };
        if !text.is_empty() {
            pieces.push(Piece { text: text.to_owned(), is_bold, colour });
        }
    }
    pieces
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

fn columns(pieces: &[Piece]) -> f64 {
    u32::try_from(pieces.iter().map(|p| p.text.chars().count()).sum::<usize>()).map_or(0.0, f64::from)
}

fn picture(lines: &[Line]) -> Result<String, Failure> {
    let parts: Vec<Vec<Piece>> = lines.iter().map(|line| pieces(&line.text)).collect();
    let widest = parts.iter().map(|p| columns(p)).fold(0.0, f64::max);
    let rows = f64::from(u32::try_from(lines.len())?);
    let (width, height) = (widest * COLUMN + 2.0 * MARGIN, rows * ROW + 2.0 * MARGIN);
    let mut svg = format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0} {height:.0}" width="{width:.0}" height="{height:.0}" role="img">
<title>countersign up --demo, recorded in a terminal</title>
<!-- Written by `cargo xtask record-demo`. Lines appear when they did; where nothing moves, all are there. -->
<style>
text {{ font: 14px ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; fill: #e6edf3; white-space: pre; }}
.b {{ font-weight: bold; }}
.l {{ animation: appear 0.01s linear backwards; }}
@keyframes appear {{ from {{ opacity: 0; }} to {{ opacity: 1; }} }}
@media (prefers-reduced-motion: reduce) {{ .l {{ animation: none; }} }}
</style>
<rect width="100%" height="100%" rx="8" fill="#0d1117"/>
"##
    );
    for (row, (line, parts)) in (1_u32..).zip(lines.iter().zip(&parts)) {
        if parts.is_empty() {
            continue;
        }
        let y = MARGIN + f64::from(row) * ROW - 5.0;
        // The width is given, so that columns stand below each other whatever font there is.
        write!(
            svg,
            r#"<text class="l" x="{MARGIN}" y="{y}" textLength="{:.1}" xml:space="preserve" style="animation-delay: {:.2}s">"#,
            columns(parts) * COLUMN,
            line.at.as_secs_f64()
        )?;
        for part in parts {
            let text = escaped(&part.text);
            match (part.is_bold, part.colour) {
                (false, None) => svg += &text,
                (true, None) => write!(svg, r#"<tspan class="b">{text}</tspan>"#)?,
                (false, Some(colour)) => write!(svg, r#"<tspan fill="{colour}" style="fill: {colour}">{text}</tspan>"#)?,
                (true, Some(colour)) => write!(svg, r#"<tspan class="b" style="fill: {colour}">{text}</tspan>"#)?,
            }
        }
        svg += "</text>\n";
    }
    Ok(svg + "</svg>\n")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn a_line_is_taken_apart_at_its_colours() {
        let piece = |text: &str, is_bold, colour| Piece { text: text.to_owned(), is_bold, colour };
        assert_eq!(
            pieces("  0.1 s  \u{1b}[1m\u{1b}[34mserver\u{1b}[0m is up"),
            [piece("  0.1 s  ", false, None), piece("server", true, Some("#79c0ff")), piece(" is up", false, None)]
        );
        assert_eq!(pieces("plain"), [piece("plain", false, None)]);
        assert!(pieces("").is_empty());
    }

    #[test]
    fn a_picture_shows_each_line_at_its_time_and_no_escape_sequence() {
        let lines = [Line { at: Duration::from_millis(1500), text: "\u{1b}[1ma <b> & c\u{1b}[0m".to_owned() }];
        let svg = picture(&lines).unwrap();
        assert!(svg.contains("animation-delay: 1.50s") && svg.contains("a &lt;b&gt; &amp; c"), "{svg}");
        assert!(!svg.contains('\u{1b}'));
    }
}
