//! Text generation: `tpc generate`.
//!
//! ```text
//! tpc generate MODEL_DIR --prompt "In the beginning" --new-tokens 100
//! tpc generate MODEL_DIR --prompts FILE --plan tp --mesh tp=2 --temperature 0.8 --top-p 0.95 --seed 1
//! ```
//!
//! The directory is a Hugging Face directory of a causal family, with its tokenizer. The text of a single prompt is
//! printed as it is generated. With several prompts, each gives a JSON line when its batch is done, with `text`,
//! `tokens`, and the reason why it `ended` (`length`, `end` of the text, or a `stop` text). `--output FILE.jsonl`
//! writes these lines to a file.
//!
//! # Prompts
//!
//! `--prompts` takes a file with one prompt per line. A line is plain text or, if the first line begins with `{`, a
//! JSON object with one of these keys:
//!
//! | key | value |
//! |---|---|
//! | `prompt` | a text |
//! | `tokens` | a list of token numbers, for directories without a tokenizer |
//! | `messages` | a conversation, which the directory's chat template formats for the model to answer |
//!
//! `--batch N` sets how many prompts are processed at a time. They may differ in length: a shorter prompt begins later
//! in the cache, the slots before it are masked, and its positions count from its own beginning. The result of a prompt
//! does not depend on the other prompts in its batch.
//!
//! # Choosing the next token
//!
//! | option | meaning |
//! |---|---|
//! | none of these | the most likely token; on ties, the one with the smallest number |
//! | `--temperature X` | a draw from the softmax of the logits divided by X |
//! | `--top-k K` | draws from the K most likely tokens only |
//! | `--top-p P` | draws from the smallest set of most likely tokens whose total probability reaches P |
//! | `--repetition-penalty X` | divides the logits of tokens that already occurred by X if they are positive, and multiplies them by X otherwise |
//! | `--seed N` | the seed; a draw is a function of the seed, the prompt's place in its batch and the position, on any mesh |
//! | `--stop TEXT` | ends a text before the first occurrence of TEXT |
//!
//! The order and meaning of the options are those of transformers. The tokens that end a text come from
//! `generation_config.json`, otherwise from `config.json`, otherwise from the tokenizer; `--ignore-end` continues past
//! them.
//!
//! # The cache
//!
//! Two programs share one set of weights: one reads the prompts in chunks, the other reads one token of each sequence.
//! Both keep the keys and values of all tokens in a cache, which is part of the plan like any other tensor. No style
//! names the cache: it has the placement of the keys that are written into it. Under `tp` each rank holds its kv heads
//! or, if there are fewer kv heads than ranks, a copy of the one that it needs. Under `ddp` and `fsdp` each rank holds
//! the sequences of its part of the batch. A run writes its rows in place and reads as many slots as the next power of
//! two. The ranks allocate exactly the memory that the compiler predicts.
//!
//! # Not supported
//!
//! - Prompts that join a batch while others are being generated (continuous batching), and beams.
//! - Rotary embeddings that change with the length (`dynamic`, `longrope`): they use the frequencies of the longest
//!   sequence that fits into the cache, from the first token on.
//!
//! # In a program
//!
//! In Rust, [`Generator`](crate::generate::Generator) does the same: it compiles for a mesh, a plan and
//! [`Limits`](crate::generate::Limits), and passes on every token as soon as it is chosen, with the logits that it was
//! chosen from. The crate `tpc-data` turns tokens into text; its `Tokenizer::of_dir` reads the directory's tokenizer.
//! The main job (`examples/src/bin/train_text/writing.rs`) is an example.
//!
//! ```
//! # use tpc::generate::{Generate, Generator, Limits};
//! # use tpc::models::ModelDir;
//! # use tpc::prelude::*;
//! # std::env::set_current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/hf"))?;
//! let dir = ModelDir::open("llama-tiny")?;
//! let limits = Limits { batch: 2, prompt: 8, new_tokens: 16 };
//! let mut generator = Generator::pretrained(&dir, &Mesh::new([("tp", 2)])?, &Plan::built_in("tp")?, limits)?;
//! let asked = Generate { new_tokens: 16, ..Generate::default() }; // the most likely tokens
//! let prompts = [vec![1, 5, 9], vec![7, 3, 11, 2, 4]];
//! let generated = generator.generate(&prompts, &asked, &mut |chosen| chosen.token != 0)?;
//! assert!(generated.iter().all(|one| one.tokens.len() <= 16));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
