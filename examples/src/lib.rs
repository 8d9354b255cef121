//! Programs to start from: `quickstart` shards a burn module, `train_text` is the main job.

#[cfg(test)]
mod tests {
    #[test]
    fn the_readme_shows_the_quickstart() {
        let (readme, program) = (include_str!("../../README.md"), include_str!("bin/quickstart.rs"));
        let code = program.split_once('\n').map_or(program, |(_, code)| code);
        assert!(readme.contains(code), "copy examples/src/bin/quickstart.rs, without its first line, into README.md");
    }
}
