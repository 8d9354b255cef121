//! Which batches a corpus gives, and that they are the same however often the run is interrupted.

mod support;

use proptest::prelude::*;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use support::{Temporary, corpus, letters, recipe, tokenizer};
use tpc_data::{Batch, Corpus, Format, LossOn, Objective, Packing, Position, Recipe, Split, Stream};

/// All batches of some epochs.
fn batches(recipe: &Recipe, rows: usize, epochs: u64) -> Vec<Batch> {
    let mut stream = Stream::start(recipe.clone(), None, Some(epochs)).unwrap();
    std::iter::from_fn(|| stream.next(rows).unwrap()).collect()
}

/// The tokens of a batch's rows as text, without padding.
fn rows(recipe: &Recipe, batch: &Batch) -> Vec<String> {
    let text = |row: usize| {
        let of = row * batch.seq..(row + 1) * batch.seq;
        let ids = batch.input_ids[of.clone()].iter().zip(&batch.attention_mask[of]);
        let ids: Vec<u32> = ids.filter(|(_, mask)| **mask == 1).map(|(id, _)| *id as u32).collect();
        recipe.tokenizer.decode(&ids).unwrap()
    };
    (0..batch.rows).map(text).collect()
}

fn json_lines(dir: &Temporary, documents: &[&str]) -> PathBuf {
    let lines = documents.iter().map(|text| format!("{}\n", serde_json::json!({"text": text})));
    dir.file("data.jsonl", lines.collect::<String>())
}

#[test]
fn packed_rows_are_full_and_go_on() {
    let dir = Temporary::new();
    let recipe = recipe(corpus(&[json_lines(&dir, &["abc", "defgh", "ij"])], 100), letters(), 4);
    let found = batches(&recipe, 2, 1);
    assert_eq!(found.iter().flat_map(|batch| rows(&recipe, batch)).collect::<Vec<_>>(), ["abcd", "efgh", "ij", ""]);
    let [first, second] = &found[..] else { panic!("{found:?}") };
    assert_eq!(first.input_ids, [2, 3, 4, 5, 6, 7, 8, 9]);
    assert_eq!(first.labels, [-100, 3, 4, 5, -100, 7, 8, 9]);
    assert_eq!((first.tokens, first.counted, first.epoch), (8, 6, 0));
    assert_eq!(second.input_ids, [10, 11, 0, 0, 0, 0, 0, 0]);
    assert_eq!(second.labels, [-100, 11, -100, -100, -100, -100, -100, -100]);
    assert_eq!(second.attention_mask, [1, 1, 0, 0, 0, 0, 0, 0]);
    assert_eq!((second.tokens, second.counted), (2, 1));
}

#[test]
fn documents_apart_have_numbers_and_positions_of_their_own() {
    let dir = Temporary::new();
    let corpus = corpus(&[json_lines(&dir, &["abc", "defgh", "ij"])], 100);
    let recipe = Recipe { packing: Packing::Apart, ..recipe(corpus, letters(), 5) };
    let found = batches(&recipe, 3, 1);
    let [batch] = &found[..] else { panic!("{found:?}") };
    assert_eq!(rows(&recipe, batch), ["abcde", "fghij", ""]);
    assert_eq!(batch.document_ids, [0, 0, 0, 1, 1, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0]);
    assert_eq!(batch.position_ids, [0, 1, 2, 0, 1, 0, 1, 2, 0, 1, 0, 1, 2, 3, 4]);
    assert_eq!(batch.labels, [-100, 3, 4, -100, 6, -100, 8, 9, -100, 11, -100, -100, -100, -100, -100]);
}

#[test]
fn padded_rows_are_documents_or_parts_of_them() {
    let dir = Temporary::new();
    let corpus = corpus(&[json_lines(&dir, &["abc", "defghi", "j", "kl"])], 100);
    let recipe = Recipe { packing: Packing::Padded, ..recipe(corpus, letters(), 4) };
    let found = batches(&recipe, 4, 1);
    let [batch] = &found[..] else { panic!("{found:?}") };
    assert_eq!(rows(&recipe, batch), ["abc", "defg", "hi", "kl"], "in a row of one token there is nothing to predict");
    assert_eq!(batch.attention_mask, [1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 0, 0, 1, 1, 0, 0]);
    assert_eq!(batch.document_ids, [0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0, 1, 1]);
    assert_eq!(batch.labels[..4], [-100, 3, 4, -100]);
}

/// A text has the token that ends a text at its end only, however many pieces it has.
#[test]
fn texts_end_with_the_end_of_text() {
    let dir = Temporary::new();
    let text = "In the beginning was the Word, and the Word was with God.\n".repeat(40);
    let file = dir.file("text", &text);
    let recipe = recipe(corpus(&[file.clone(), file], 500), tokenizer(), 64);
    let found = batches(&recipe, 8, 1);
    let ids = found.iter().flat_map(|b| b.input_ids.iter().zip(&b.attention_mask)).filter(|(_, mask)| **mask == 1);
    let ids: Vec<u32> = ids.map(|(id, _)| *id as u32).collect();
    let eos = recipe.tokenizer.eos().unwrap();
    let texts: Vec<String> = ids.split(|id| *id == eos).map(|ids| recipe.tokenizer.decode(ids).unwrap()).collect();
    assert_eq!(texts, [text.as_str(), &text, ""]);
}

#[test]
fn masked_rows_are_guessed_from_all_around() {
    let dir = Temporary::new();
    let text = "abcdefghijklmnopqrstuvwxyz".repeat(400);
    let recipe = Recipe {
        objective: Objective::Masked { mask: 30, tokens: 28, special: [Some(2), None, None] },
        ..recipe(corpus(&[json_lines(&dir, &[&text])], 100), letters(), 104)
    };
    let found = batches(&recipe, 100, 1);
    let [batch] = &found[..] else { panic!("{} batches", found.len()) };
    let original: Vec<i64> = text.bytes().map(|b| i64::from(b - b'a') + 2).collect();
    let mut kinds = [0usize; 3];
    for ((&id, &label), &was) in batch.input_ids.iter().zip(&batch.labels).zip(&original) {
        match label {
            -100 => assert_eq!(id, was),
            _ => {
                assert!(
                    label == was && was != 2,
                    "what is guessed is the token that was there, none of the special ones"
                );
                kinds[if id == 30 {
                    0
                } else if id == was {
                    1
                } else {
                    2
                }] += 1;
            }
        }
    }
    let guessed: usize = kinds.iter().sum();
    let shares = kinds.map(|n| n as f64 / guessed as f64);
    assert!((guessed as f64 / 10_000.0 - 0.15).abs() < 0.015, "{guessed}");
    assert!(
        (shares[0] - 0.8).abs() < 0.05 && (shares[1] - 0.1).abs() < 0.03 && (shares[2] - 0.1).abs() < 0.03,
        "{shares:?}"
    );
    assert_eq!(batches(&recipe, 100, 1), found, "masks are a function of the seed");
}

#[test]
fn epochs_differ_and_seeds_differ() {
    let dir = Temporary::new();
    let documents: Vec<String> = (0..40).map(|i| format!("{}abc", char::from(b'a' + i % 26))).collect();
    let documents: Vec<&str> = documents.iter().map(String::as_str).collect();
    let of = |seed, shuffled| Recipe {
        seed,
        shuffled,
        packing: Packing::Padded,
        ..recipe(corpus(&[json_lines(&dir, &documents)], 100), letters(), 4)
    };
    let order = |recipe: &Recipe, epochs| -> Vec<String> {
        batches(recipe, 8, epochs).iter().flat_map(|batch| rows(recipe, batch)).collect()
    };
    let two = order(&of(1, true), 2);
    assert_eq!(two.len(), 80);
    assert_ne!(two[..40], two[40..]);
    assert_ne!(two[..40], order(&of(2, true), 1));
    assert_eq!(two[..40], order(&of(1, true), 1));
    assert_eq!(order(&of(1, false), 2), [&documents[..], &documents[..]].concat());
    assert_eq!(of(1, true).count(2).unwrap(), 80);
    let epochs: Vec<u64> = batches(&of(1, true), 8, 2).iter().map(|batch| batch.epoch).collect();
    assert_eq!(epochs, [0, 0, 0, 0, 0, 1, 1, 1, 1, 1]);
}

#[test]
fn what_is_held_out_is_the_rest() {
    let dir = Temporary::new();
    let documents: Vec<String> =
        (0..40).map(|i| format!("{}{}x", char::from(b'a' + i % 26), char::from(b'a' + i / 26))).collect();
    let documents: Vec<&str> = documents.iter().map(String::as_str).collect();
    let of = |split| Recipe {
        split,
        seed: 5,
        shuffled: true,
        packing: Packing::Padded,
        ..recipe(corpus(&[json_lines(&dir, &documents)], 100), letters(), 4)
    };
    let all = |split| -> Vec<String> {
        let recipe = of(split);
        let found = batches(&recipe, 8, 1);
        found.iter().flat_map(|batch| rows(&recipe, batch)).filter(|row| !row.is_empty()).collect()
    };
    let (train, held) = (all(Split::But(0.1)), all(Split::Only(0.1)));
    assert_eq!((train.len(), held.len()), (36, 4));
    let mut both = [train, held].concat();
    both.sort_unstable();
    let mut expected = documents.clone();
    expected.sort_unstable();
    assert_eq!(both, expected);
    let fails = |share| Stream::start(of(Split::But(share)), None, None).unwrap_err().to_string();
    assert_eq!(
        fails(0.99),
        "a held-out share of 0.99 leaves nothing to train on: the data has 40 parts; give a smaller share, or other data to evaluate on"
    );
}

#[test]
fn a_position_of_other_data_is_refused() {
    let dir = Temporary::new();
    let of = |text: &str, seq| recipe(corpus(&[json_lines(&dir, &[text])], 100), letters(), seq);
    let first = of("some text that is long", 4);
    let mut stream = Stream::start(first.clone(), None, None).unwrap();
    stream.next(2).unwrap();
    let position = stream.position();
    let kept: Position = serde_json::from_str(&serde_json::to_string(&position).unwrap()).unwrap();
    assert_eq!(kept, position);
    let says = |recipe: Recipe| Stream::start(recipe, Some(&position), None).unwrap_err().to_string();
    let end = "; give the same data and options, or start with another --checkpoint";
    let begin = "the checkpoint was written with other data: ";
    assert_eq!(says(of("some text that is long", 5)), format!("{begin}the length of a sequence was 4, but is 5{end}"));
    let (a, b) = (first.made().data, of("another", 4).made().data);
    assert_eq!(says(of("another", 4)), format!("{begin}the text of --data was {a}, but is {b}{end}"));
    let packing = Recipe { packing: Packing::Padded, ..of("some text that is long", 4) };
    assert_eq!(
        says(packing),
        format!("{begin}the way rows are made was packed, next, loss on all, but is padded, next, loss on all{end}")
    );
    assert_eq!(
        says(Recipe { seed: 3, ..of("some text that is long", 4) }),
        format!("{begin}the seed was 0, but is 3{end}")
    );
    let other = Recipe { tokenizer: Arc::new(tokenizer()), ..of("some text that is long", 4) };
    assert!(says(other).starts_with(&format!("{begin}the tokenizer was ")));
    let held = Recipe { split: Split::But(0.5), ..of("some text that is long", 4) };
    assert_eq!(says(held), format!("{begin}the held-out share was 0, but is 0.5{end}"));
}

#[test]
fn a_token_outside_of_the_models_table_is_told() {
    let dir = Temporary::new();
    let file = json_lines(&dir, &["abc", "xyz"]);
    let recipe = Recipe { table: 20, ..recipe(corpus(&[file], 100), letters(), 4) };
    let error = Stream::start(recipe, None, None).unwrap().next(2).unwrap_err().to_string();
    assert_eq!(
        error.replace(dir.0.to_str().unwrap(), "$DIR"),
        "$DIR/data.jsonl: line 2: token \"x\" is 25, but the model's embedding has 20 rows: the tokenizer does not belong to the model"
    );
}

#[test]
fn data_without_anything_to_predict_is_told() {
    let dir = Temporary::new();
    let recipe = recipe(corpus(&[json_lines(&dir, &["a"])], 100), letters(), 4);
    let error = Stream::start(recipe, None, None).unwrap().next(2).unwrap_err().to_string();
    assert_eq!(
        error.replace(dir.0.to_str().unwrap(), "$DIR"),
        "$DIR/data.jsonl: no token of the data counts toward the loss: it has a single token"
    );
}

fn documents() -> impl Strategy<Value = Vec<String>> {
    prop::collection::vec("[a-z ]{1,40}", 1..40)
}

fn packing() -> impl Strategy<Value = Packing> {
    prop_oneof![Just(Packing::Packed), Just(Packing::Apart), Just(Packing::Padded)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Every character of every document comes once an epoch, and no other.
    #[test]
    fn nothing_is_lost_or_doubled(
        texts in documents(), packing in packing(), seq in 2usize..20, size in 1usize..6, seed in 0u64..9, shuffled: bool,
    ) {
        let dir = Temporary::new();
        let documents: Vec<&str> = texts.iter().map(String::as_str).collect();
        let recipe = Recipe {
            packing, seed, shuffled, ..recipe(corpus(&[json_lines(&dir, &documents)], 100), letters(), seq)
        };
        let total: usize = texts.iter().map(String::len).sum();
        prop_assume!(total > 1);
        let mut counts: BTreeMap<char, i64> = BTreeMap::new();
        texts.iter().flat_map(|t| t.chars()).for_each(|c| *counts.entry(c).or_default() += 1);
        for batch in batches(&recipe, size, 1) {
            rows(&recipe, &batch).iter().flat_map(|t| t.chars()).for_each(|c| *counts.entry(c).or_default() -= 1);
        }
        // Rows of one token, in which there is nothing to predict, are left out.
        let lost: i64 = counts.values().sum();
        prop_assert!(counts.values().all(|c| *c >= 0), "doubled: {counts:?}");
        let single = match packing {
            Packing::Padded => texts.iter().filter(|t| t.len() % seq == 1).count() as i64,
            _ => i64::from(total % seq == 1),
        };
        if packing == Packing::Apart {
            // A row may also be of documents of one token.
            prop_assert!(lost <= (total as i64), "{counts:?}");
        } else {
            prop_assert_eq!(lost, single);
        }
        let rows: usize = batches(&recipe, 1, 1).len();
        prop_assert_eq!(recipe.count(1).unwrap(), rows as u64);
    }

    /// From every position on, the batches are those of the run that was not interrupted: also with another number of rows.
    #[test]
    fn a_resumed_stream_goes_on(
        texts in documents(), packing in packing(), seq in 2usize..20, size in 1usize..6, seed in 0u64..9,
    ) {
        let dir = Temporary::new();
        let documents: Vec<&str> = texts.iter().map(String::as_str).collect();
        prop_assume!(texts.iter().any(|t| t.len() > 1));
        let recipe = Recipe {
            packing, seed, shuffled: true, ..recipe(corpus(&[json_lines(&dir, &documents)], 100), letters(), seq)
        };
        let mut stream = Stream::start(recipe.clone(), None, Some(3)).unwrap();
        let mut positions = vec![stream.position()];
        let mut all = Vec::new();
        while let Some(batch) = stream.next(size).unwrap() {
            all.push(batch);
            positions.push(stream.position());
        }
        for (done, position) in positions.iter().enumerate() {
            let kept: Position = serde_json::from_str(&serde_json::to_string(position).unwrap()).unwrap();
            let mut resumed = Stream::start(recipe.clone(), Some(&kept), Some(3)).unwrap();
            prop_assert_eq!(&resumed.position(), position);
            for batch in &all[done..] {
                let next = resumed.next(size).unwrap();
                prop_assert_eq!(next.as_ref(), Some(batch));
            }
            prop_assert_eq!(resumed.next(size).unwrap(), None);
        }
        let mut resumed = Stream::start(recipe.clone(), Some(&positions[1.min(all.len() - 1)]), Some(3)).unwrap();
        let rest: Vec<String> = all[1.min(all.len() - 1)..].iter().flat_map(|b| rows(&recipe, b)).collect();
        let other: Vec<String> = std::iter::from_fn(|| resumed.next(1).unwrap()).flat_map(|b| rows(&recipe, &b)).collect();
        let real = |rows: Vec<String>| rows.into_iter().filter(|row| !row.is_empty()).collect::<Vec<_>>();
        prop_assert_eq!(real(other), real(rest));
    }
}

/// A corpus of several windows: positions inside and between them.
#[test]
fn windows_follow_each_other() {
    let dir = Temporary::new();
    let lines: String = (0..60_000u32)
        .map(|i| {
            let word: String = (0..5).map(|d| char::from(b'a' + (i / 10u32.pow(d) % 10) as u8)).collect();
            serde_json::json!({"text": format!("{word} some more words that follow")}).to_string() + "\n"
        })
        .collect();
    let corpus = Corpus::open(&[dir.file("a.jsonl", lines)], &Format::ByName, 100).unwrap();
    assert!(corpus.bytes() > 5 << 19, "several windows: {}", corpus.bytes());
    let recipe = Recipe { shuffled: true, seed: 3, loss: LossOn::All, ..recipe(corpus, letters(), 32) };
    let mut stream = Stream::start(recipe.clone(), None, Some(1)).unwrap();
    let mut counts = 0;
    let mut kept = Vec::new();
    let mut all = Vec::new();
    while let Some(batch) = stream.next(1000).unwrap() {
        counts += batch.tokens;
        all.push(batch);
        kept.push(stream.position());
    }
    assert_eq!(counts, 60_000 * 33);
    for done in [5, 20, 37, 60] {
        let text = serde_json::to_string(&kept[done]).unwrap();
        assert!(text.len() < 1000, "a position is small: {text}");
        let mut resumed = Stream::start(recipe.clone(), Some(&kept[done]), Some(1)).unwrap();
        assert_eq!(resumed.next(1000).unwrap().as_ref(), all.get(done + 1), "{done}");
    }
}
