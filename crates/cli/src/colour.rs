//! Whether output has colours: on a terminal that shows them, unless the user says otherwise.

use std::ffi::OsString;

use anstream::{AutoStream, ColorChoice};
use anstyle::Style;
use clap::ValueEnum;

/// The option every command has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum When {
    /// On a terminal, unless NO_COLOR is set or TERM is `dumb`.
    Auto,
    /// In files and pipes too.
    Always,
    /// Not at all.
    Never,
}

impl When {
    /// What the arguments ask for. Help and errors are printed while arguments are read, so this looks ahead.
    pub(crate) fn ahead(arguments: impl Iterator<Item = OsString>) -> Self {
        let mut asked = Self::Auto;
        let mut is_value = false;
        for argument in arguments {
            let Some(text) = argument.to_str() else { continue };
            let value = if is_value { Some(text) } else { text.strip_prefix("--color=") };
            if let Some(when) = value.and_then(|v| Self::from_str(v, false).ok()) {
                asked = when;
            }
            is_value = text == "--color";
        }
        asked
    }

    /// Makes it count for all output of this process.
    pub(crate) fn apply(self) {
        let variable = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty());
        choice(self, variable("NO_COLOR").is_some(), variable("TERM").is_some_and(|t| t == "dumb")).write_global();
    }
}

fn choice(when: When, no_color: bool, is_dumb: bool) -> ColorChoice {
    match when {
        When::Always => ColorChoice::Always,
        When::Never => ColorChoice::Never,
        When::Auto if no_color || is_dumb => ColorChoice::Never,
        When::Auto => ColorChoice::Auto,
    }
}

/// Text for standard output in this style, or as it is.
pub(crate) fn paint(style: Style, text: &str) -> String {
    painted(AutoStream::choice(&std::io::stdout()), style, text)
}

/// Text for standard error in this style, or as it is.
pub(crate) fn paint_error(style: Style, text: &str) -> String {
    painted(AutoStream::choice(&std::io::stderr()), style, text)
}

fn painted(choice: ColorChoice, style: Style, text: &str) -> String {
    if choice == ColorChoice::Never { text.to_owned() } else { format!("{style}{text}{style:#}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_counts_more_than_the_environment_and_that_more_than_the_terminal() {
        assert_eq!(choice(When::Auto, false, false), ColorChoice::Auto);
        assert_eq!(choice(When::Auto, true, false), ColorChoice::Never);
        assert_eq!(choice(When::Auto, false, true), ColorChoice::Never);
        assert_eq!(choice(When::Always, true, true), ColorChoice::Always);
        assert_eq!(choice(When::Never, false, false), ColorChoice::Never);
    }

    #[test]
    fn the_option_is_seen_before_arguments_are_read() {
        let ahead = |arguments: &[&str]| When::ahead(arguments.iter().map(OsString::from));
        assert_eq!(ahead(&["countersign", "--help"]), When::Auto);
        assert_eq!(ahead(&["countersign", "--color", "never", "--help"]), When::Never);
        assert_eq!(ahead(&["countersign", "entry", "--color=always"]), When::Always);
        assert_eq!(ahead(&["countersign", "--color", "sometimes"]), When::Auto);
    }
}
