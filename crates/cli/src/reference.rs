//! The reference of all commands, `docs/reference/cli.md`, is what `--help` says; this holds it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::fmt::Write as _;

use clap::{Command, CommandFactory as _};

/// Columns of the reference, whatever terminal the test runs in.
const COLUMNS: usize = 100;

/// Help that says the same in every environment.
fn settled(command: Command) -> Command {
    command.term_width(COLUMNS).mut_args(|argument| argument.hide_env_values(true)).mut_subcommands(settled)
}

fn write(command: &Command, text: &mut String) {
    let name = command.get_bin_name().unwrap_or_else(|| command.get_name()).to_owned();
    let help = command.clone().bin_name(&name).render_long_help().to_string();
    let lines: Vec<&str> = help.lines().map(str::trim_end).collect();
    write!(text, "\n## {name}\n\n```text\n{}\n```\n", lines.join("\n").trim_end()).unwrap();
    for below in command.get_subcommands().filter(|c| !c.is_hide_set() && c.get_name() != "help") {
        write(below, text);
    }
}

#[test]
fn the_reference_says_what_help_says() {
    let mut command = settled(crate::Arguments::command());
    command.build();
    let mut text = "# Commands\n\nWhat `--help` says, all of it. Written by `cargo xtask bless`; a test holds it.\n".to_owned();
    write(&command, &mut text);
    expect_test::expect_file!["../../../docs/reference/cli.md"].assert_eq(&text);
}

#[test]
fn every_command_is_explained() {
    fn check(command: &Command) {
        let name = command.get_name();
        assert!(command.get_about().is_some(), "`{name}` says nothing about itself");
        for argument in command.get_arguments().filter(|a| !a.is_hide_set()) {
            assert!(argument.get_help().is_some(), "`{}` of `{name}` says nothing about itself", argument.get_id());
        }
        command.get_subcommands().for_each(check);
    }
    let mut command = crate::Arguments::command();
    command.build();
    check(&command);
}

#[test]
fn what_is_printed_as_json_is_printed_as_yaml_too() {
    fn forms(command: &Command, found: &mut usize) {
        if let Some(output) = command.get_arguments().find(|a| a.get_id() == "output") {
            let forms: Vec<String> = output.get_possible_values().iter().map(|v| v.get_name().to_owned()).collect();
            assert_eq!(forms, ["table", "json", "yaml"], "{}", command.get_name());
            *found += 1;
        }
        command.get_subcommands().for_each(|c| forms(c, found));
    }
    let mut found = 0;
    forms(&crate::Arguments::command(), &mut found);
    assert!(found >= 20, "only {found} commands have --output");
}
