//! The main job with few steps: the curves are equal, predictions match the execution, and the saved model is a model
//! directory.

use std::process::Command;
use tpc::models::ModelDir;
use tpc_data::Tokenizer;

#[test]
fn it_goes_the_whole_way() {
    let dir = std::env::temp_dir().join(format!("tpc-main-job-test-{}", std::process::id()));
    let output = Command::new(env!("CARGO_BIN_EXE_train_text")).args(["--steps", "7", "--save"]).arg(&dir).output();
    let output = output.unwrap();
    let (text, err) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{text}\n{err}");
    assert!(text.contains("the curves are equal"), "{text}");
    assert!(text.contains("as predicted: true"), "{text}");
    let line = text.lines().find(|line| line.contains("collectives executed")).unwrap();
    let counts: Vec<u64> = line.split([' ', ';']).filter_map(|word| word.parse().ok()).collect();
    assert!(counts[0] > 0 && counts[0] == counts[1], "{line}");
    // Validation: some steps and the last one, of both runs.
    assert_eq!(text.matches("on held-out text").count(), 2 * 4, "{text}");

    let (model, tokenizer) = (ModelDir::open(&dir).unwrap(), Tokenizer::of_dir(&dir, 0).unwrap().unwrap());
    assert_eq!(model.warnings.len(), 0, "{:?}", model.warnings);
    assert_eq!(model.config.vocab_size(), tokenizer.size());
    let prompt = "And Jesus said unto them,";
    assert_eq!(tokenizer.decode(&tokenizer.encode(prompt).unwrap()).unwrap(), prompt);
    assert!(
        text.contains(prompt) && text.trim_end().ends_with(&format!("the model is in {}", dir.display())),
        "{text}"
    );
    std::fs::remove_dir_all(dir).unwrap();
}
