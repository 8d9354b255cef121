//! Tokenizers give what Python's give, and any text comes back whole.

mod support;

use proptest::prelude::*;
use std::collections::BTreeMap;
use std::fs;
use std::sync::LazyLock;
use support::{Temporary, data, json, letters, tokenizer, with_template};
use tpc_data::tokenizer::{END_OF_TEXT, train};
use tpc_data::{Corpus, Format, Tokenizer};

#[test]
fn texts_have_the_tokens_of_transformers() {
    let tokenizer = tokenizer();
    for case in json("encoded.json").as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        let ids: Vec<u32> = serde_json::from_value(case["ids"].clone()).unwrap();
        assert_eq!(tokenizer.encode(text).unwrap(), ids, "{text:?}");
    }
    let (_dir, tokenizer) = with_template("");
    let tokenizer = tokenizer.unwrap();
    assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.pad()), (Some(1), Some(0), 0));
    assert_eq!(tokenizer.size(), 400);
}

/// The same text, options and size as in `make.py`: the same vocabulary and merges, in the same order.
#[test]
fn a_trained_tokenizer_is_that_of_python() {
    let text = fs::read_to_string(data().join("../../../../examples/data/kjv-new-testament.txt")).unwrap();
    let dir = Temporary::new();
    let file = dir.file("text", text.chars().take(200_000).collect::<String>());
    // In one piece, as Python has it.
    let corpus = Corpus::open(&[file], &Format::ByName, 1 << 20).unwrap();
    let trained = train(&corpus, 600, &[], false).unwrap();
    assert_eq!(trained.size, 600);
    let ours: serde_json::Value = serde_json::from_str(&trained.tokenizer).unwrap();
    let golden = json("trained.json");
    let vocabulary =
        |json: &serde_json::Value| -> BTreeMap<String, u32> { serde_json::from_value(json.clone()).unwrap() };
    assert_eq!(vocabulary(&ours["model"]["vocab"]), vocabulary(&golden["vocab"]));
    assert_eq!(ours["model"]["merges"], golden["merges"]);
    assert_eq!(train(&corpus, 600, &[], false).unwrap(), trained, "training is a function of the text");

    trained.save(&dir.0.join("model")).unwrap();
    let tokenizer = Tokenizer::of_dir(&dir.0.join("model"), 0).unwrap().unwrap();
    assert_eq!((tokenizer.eos(), tokenizer.bos(), tokenizer.pad(), tokenizer.size()), (Some(0), Some(0), 0, 600));
    assert_eq!(tokenizer.token(0).as_deref(), Some(END_OF_TEXT));
    let names: Vec<String> =
        fs::read_dir(dir.0.join("model")).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(names.len(), 2, "nothing else is left there: {names:?}");
}

#[test]
fn a_vocabulary_that_cannot_be_is_refused() {
    let dir = Temporary::new();
    let corpus = Corpus::open(&[dir.file("text", "a text")], &Format::ByName, 100).unwrap();
    let says = |vocab, special: &[&str]| {
        let special: Vec<String> = special.iter().map(ToString::to_string).collect();
        train(&corpus, vocab, &special, false).unwrap_err().to_string()
    };
    assert_eq!(
        says(257, &["<a>"]),
        "a byte-level vocabulary needs at least 258 tokens, one for each byte and one for each special token; --vocab is 257"
    );
    assert_eq!(says(300, &["<a>", "<a>"]), "\"<a>\" cannot be a special token: it is given twice");
    assert_eq!(says(300, &[""]), "\"\" cannot be a special token: it is empty");
    assert_eq!(says(300, &[END_OF_TEXT]), "\"<|endoftext|>\" cannot be a special token: it is given twice");
    let least = train(&corpus, 258, &["<a>".into()], false).unwrap();
    assert_eq!(least.size, 258);
    let masked = train(&corpus, 258, &[], true).unwrap();
    masked.save(&dir.0.join("masked")).unwrap();
    let tokenizer = Tokenizer::of_dir(&dir.0.join("masked"), 0).unwrap().unwrap();
    assert_eq!((tokenizer.eos(), tokenizer.mask()), (Some(0), Some(1)));
    assert_eq!(train(&corpus, 1000, &[], false).unwrap().size, 257, "no pair occurs twice");
}

static BYTES: LazyLock<Tokenizer> = LazyLock::new(tokenizer);

proptest! {
    #[test]
    fn any_text_comes_back(text in any::<String>()) {
        prop_assume!(!text.contains("<|"));
        let encoded = BYTES.encode_bare(&text).unwrap();
        prop_assert_eq!(BYTES.decode(&encoded.ids).unwrap(), text.clone());
        // Every byte is of a token, and tokens are in order.
        let ends: Vec<usize> = encoded.bytes.iter().map(|b| b.end).collect();
        prop_assert!(ends.is_sorted());
        prop_assert_eq!(ends.last().copied().unwrap_or(0), text.len());
    }

    /// Characters whose bytes are several tokens come whole, and nothing is lost.
    #[test]
    fn a_stream_of_tokens_gives_whole_characters(text in any::<String>()) {
        prop_assume!(!text.contains("<|") && !text.contains('\u{fffd}'));
        let mut decoder = BYTES.decoder();
        let mut all = String::new();
        for id in BYTES.encode_bare(&text).unwrap().ids {
            let piece = decoder.push(id).unwrap();
            prop_assert!(!piece.contains('\u{fffd}'), "{:?}", piece);
            all.push_str(&piece);
        }
        all.push_str(&decoder.finish().unwrap());
        prop_assert_eq!(all, text);
    }

    /// Whatever a model writes, the stream is the text of all tokens.
    #[test]
    fn a_stream_of_any_tokens_is_their_text(ids in prop::collection::vec(9u32..400, 0..40)) {
        let mut decoder = BYTES.decoder();
        let mut all = String::new();
        for &id in &ids {
            all.push_str(&decoder.push(id).unwrap());
        }
        all.push_str(&decoder.finish().unwrap());
        let whole = BYTES.decode(&ids).unwrap();
        // How many U+FFFD a broken character gives depends on where the text is cut.
        let known = |text: &str| text.replace('\u{fffd}', "");
        prop_assert_eq!(known(&all), known(&whole));
    }
}

#[test]
fn an_emoji_comes_with_its_last_token() {
    let tokenizer = tokenizer();
    let ids = tokenizer.encode_bare("a😀b").unwrap().ids;
    let mut decoder = tokenizer.decoder();
    let pieces: Vec<String> = ids.iter().map(|&id| decoder.push(id).unwrap()).collect();
    assert_eq!(pieces, ["a", "", "", "", "😀", "b"]);
    let mut decoder = tokenizer.decoder();
    assert_eq!(decoder.push(ids[1]).unwrap(), "");
    assert_eq!(decoder.finish().unwrap(), "\u{fffd}");
}

#[test]
fn characters_are_tokens_on_request() {
    let tokenizer = letters();
    assert_eq!(tokenizer.encode("a b\n").unwrap(), [2, 1, 3, 0]);
    assert_eq!(tokenizer.decode(&[2, 1, 3, 0]).unwrap(), "a b\n");
    assert_eq!(tokenizer.encode("aé").unwrap_err().to_string(), "the alphabet of the model lacks 'é'");
    assert_eq!(tokenizer.decode(&[28]).unwrap_err().to_string(), "28 is not a token: the tokenizer has 28");
    assert_eq!((tokenizer.eos(), tokenizer.pad(), tokenizer.size()), (None, 0, 28));
}

#[test]
fn directories_say_what_their_tokenizer_is() {
    let dir = Temporary::new();
    let says = || {
        let found = Tokenizer::of_dir(&dir.0, 0).map(|found| found.is_some());
        found.map_err(|e| e.to_string().replace(dir.0.to_str().unwrap(), "$DIR"))
    };
    assert_eq!(says(), Ok(false));
    dir.file("alphabet.json", "{\"characters\": \"aa\"}");
    assert_eq!(
        says(),
        Err("$DIR/alphabet.json: expected {\"characters\": …} with a text in which no character occurs twice".into())
    );
    dir.file("alphabet.json", "{\"characters\": \"ab\"}");
    assert_eq!(says(), Ok(true));
    dir.file("tokenizer.model", "");
    assert_eq!(
        says(),
        Err("$DIR/tokenizer.model: the tokenizer is in an unsupported format, and there is no tokenizer.json next to it; in Python, AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR) writes one".into())
    );
    dir.file("tokenizer.json", "{}");
    assert!(says().unwrap_err().starts_with("$DIR/tokenizer.json: "), "{:?}", says());
    fs::copy(data().join("tokenizer/tokenizer.json"), dir.0.join("tokenizer.json")).unwrap();
    assert_eq!(says(), Ok(true));
    dir.file("tokenizer_config.json", "{");
    assert_eq!(
        says(),
        Err("$DIR/tokenizer_config.json: not valid JSON: EOF while parsing an object at line 1 column 1".into())
    );
    dir.file("tokenizer_config.json", "{\"eos_token\": {\"content\": \"<|im_end|>\"}, \"chat_template\": [{\"name\": \"default\", \"template\": \"{{ x\"}]}");
    assert_eq!(
        says(),
        Err("$DIR/tokenizer_config.json: line 1: the chat template fails: syntax error: unexpected end of input, expected end of variable block".into())
    );
    dir.file("tokenizer_config.json", "{\"eos_token\": {\"content\": \"<|im_end|>\"}, \"chat_template\": null}");
    let tokenizer = Tokenizer::of_dir(&dir.0, 0).unwrap().unwrap();
    assert_eq!(tokenizer.eos().and_then(|eos| tokenizer.token(eos)).as_deref(), Some("<|im_end|>"));
    assert!(tokenizer.template().is_none());
}
