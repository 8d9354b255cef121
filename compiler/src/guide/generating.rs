//! Text from a model: `tpc generate`.
//!
//! ```text
//! tpc generate MODEL_DIR --prompt "In the beginning" --new-tokens 100
//! tpc generate MODEL_DIR --prompts FILE --plan tp --mesh tp=2 --temperature 0.8 --top-p 0.95 --seed 1
//! ```
//!
//! The directory is a Hugging Face one of a causal family, with its tokenizer. The text of a single prompt appears as it is
//! generated. Of several prompts, each gives a line of JSON when its batch is done: `text`, `tokens`, and why it `ended`
//! (`length`, `end` of the text, or a `stop` text). `--output FILE.jsonl` keeps these lines.
//!
//! # Prompts
//!
//! `--prompts` takes a file with a prompt in each line. A line is a text, or, if the first one begins with `{`, a JSON object
//! with one of these keys:
//!
//! | key | what it is |
//! |---|---|
//! | `prompt` | a text |
//! | `tokens` | a list of token numbers, for directories without a tokenizer |
//! | `messages` | a conversation, which the directory's chat template turns into a text that the model answers |
//!
//! `--batch N` prompts are generated from at a time. They may differ in length: a shorter prompt begins later in the cache,
//! what stands before it is hidden from it, and its positions count from its own beginning. What a prompt gives does not
//! depend on the others in its batch.
//!
//! # Which token comes next
//!
//! | option | meaning |
//! |---|---|
//! | none of these | the most likely token; of equal ones, the one with the smallest number |
//! | `--temperature X` | a draw from the softmax of the logits divided by X |
//! | `--top-k K` | only the K most likely tokens are drawn from |
//! | `--top-p P` | only the most likely tokens are drawn from whose probability together reaches P |
//! | `--repetition-penalty X` | logits of tokens that occurred are divided by X if positive, and multiplied by X otherwise |
//! | `--seed N` | a draw is a function of the seed, the prompt's place in its batch and the position, whatever the mesh |
//! | `--stop TEXT` | ends a text where TEXT occurs, without it |
//!
//! Their order and meaning are those of transformers. Tokens that end a text come from `generation_config.json`, otherwise
//! from `config.json`, otherwise from the tokenizer; `--ignore-end` generates past them.
//!
//! # The cache
//!
//! Two programs run over one set of weights: one reads chunks of the prompts, the other a token of each sequence. Both keep the
//! keys and values of all tokens in a cache, which is a part of the plan like any other tensor. No style names it: it lies as
//! the keys do that are written into it. Under `tp` each rank holds its kv heads, or, if there are fewer kv heads than ranks,
//! a copy of the one that it needs; under `ddp` and `fsdp` the sequences of its part of the batch. A run writes its rows in
//! place and reads as many slots as the next power of two. What the compiler predicts of the memory is what the ranks allocate.
//!
//! # What there is not
//!
//! - Prompts that join a batch while others are being generated (continuous batching), and beams.
//! - Rotary embeddings that change with the length (`dynamic`, `longrope`) use the frequencies of the longest sequence that
//!   the run has room for, from the first token on.
//!
//! # From a program
//!
//! [`Generator`](crate::generate::Generator) does the same in a program: it compiles for a mesh, a plan and
//! [`Limits`](crate::generate::Limits), and hands on every token as soon as it is chosen, with the logits that it was chosen by.
//! Tokens become text by the crate `tpc-data`, whose `Tokenizer::of_dir` reads the directory's own; the main job
//! (`examples/src/bin/train_text/writing.rs`) does that.
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
