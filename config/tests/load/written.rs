//! Settings as a test writes them: a directory of files, an environment, flags.

use std::collections::HashMap;
use std::fs;

use openclaw_config::{Errors, Loaded, Override, Sources, load};

#[derive(Default)]
pub(crate) struct Written {
    pub(crate) files: Vec<(&'static str, String)>,
    pub(crate) env: HashMap<&'static str, String>,
    pub(crate) flags: Vec<(&'static str, &'static str, &'static str)>,
    pub(crate) lenient: bool,
}

impl Written {
    pub(crate) fn file(text: impl Into<String>) -> Self {
        Self { files: vec![("openclaw.json", text.into())], ..Self::default() }
    }

    pub(crate) fn and(mut self, name: &'static str, text: &str) -> Self {
        self.files.push((name, text.to_owned()));
        self
    }

    pub(crate) fn env(mut self, name: &'static str, value: &str) -> Self {
        self.env.insert(name, value.to_owned());
        self
    }

    pub(crate) fn flag(mut self, flag: &'static str, key: &'static str, value: &'static str) -> Self {
        self.flags.push((flag, key, value));
        self
    }

    pub(crate) fn lenient(mut self) -> Self {
        self.lenient = true;
        self
    }

    /// Loads the first file, with `HOME` at `/home/test`. Messages name files without their directory.
    pub(crate) fn load(&self) -> Result<Loaded, String> {
        let directory = tempfile::tempdir().expect("make a directory");
        for (name, text) in &self.files {
            fs::write(directory.path().join(name), text).expect("write a file");
        }
        let env = |name: &str| match name {
            "HOME" => Some("/home/test".to_owned()),
            name => self.env.get(name).cloned(),
        };
        let flags = self.flags.iter();
        let sources = Sources {
            file: self.files.first().map(|(name, _)| directory.path().join(name)),
            env: &env,
            overrides: flags.map(|&(flag, key, value)| Override { flag, key, value: value.into() }).collect(),
            lenient: self.lenient,
        };
        let prefix = format!("{}/", directory.path().display());
        load(sources).map_err(|errors: Errors| errors.to_string().replace(&prefix, ""))
    }
}
