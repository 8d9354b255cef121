//! Conversations become the text that transformers makes of them, and answers the tokens that it masks.

mod support;

use serde_json::{Value, json};
use std::sync::Arc;
use support::{Temporary, json as stored, recipe, with_template};
use tpc_data::{Corpus, Format, LossOn, Recipe, Stream};

fn cases() -> Vec<(String, String, Value)> {
    let stored = stored("chat.json");
    let cases = stored["cases"].as_array().unwrap();
    let of = |case: &Value| {
        let name = case["template"].as_str().unwrap().to_string();
        (name.clone(), stored["templates"][&name].as_str().unwrap().to_string(), case.clone())
    };
    cases.iter().map(of).collect()
}

#[test]
fn templates_render_as_in_transformers() {
    let mut refused = 0;
    for (name, template, case) in cases() {
        let (_dir, tokenizer) = with_template(&template);
        let tokenizer = tokenizer.unwrap();
        let template = tokenizer.template().unwrap();
        for (prompt, expected) in [(false, &case["text"]), (true, &case["prompt"])] {
            let tools = Some(&case["tools"]).filter(|tools| !tools.is_null());
            let text = template.render(&case["messages"], tools, prompt);
            match expected.as_str() {
                Some(expected) => assert_eq!(text.unwrap(), expected, "{name}"),
                None => {
                    let problem = text.unwrap_err().to_string();
                    let expected = expected["error"].as_str().unwrap();
                    assert!(problem.ends_with(&format!("the chat template fails: {expected}")), "{name}: {problem}");
                    refused += 1;
                }
            }
        }
    }
    assert_eq!(refused, 4);
}

/// The tokens of one conversation as a batch of one row has them, and which of them count.
fn encoded(template: &str, line: &Value, loss: LossOn) -> (Vec<i64>, Vec<bool>) {
    let dir = Temporary::new();
    let file = dir.file("chat.jsonl", format!("{line}\n"));
    let corpus = Corpus::open(&[file], &Format::Chat, 1000).unwrap();
    let (_template, tokenizer) = with_template(template);
    let recipe = Recipe { loss, ..recipe(corpus, tokenizer.unwrap(), 1000) };
    let batch = Stream::start(recipe, None, Some(1)).unwrap().next(1).unwrap().unwrap();
    (batch.input_ids[..batch.tokens].to_vec(), batch.labels[..batch.tokens].iter().map(|l| *l != -100).collect())
}

#[test]
fn answers_are_those_of_transformers() {
    let mut compared = 0;
    for (name, template, case) in cases() {
        let Some(mask) = case["mask"].as_array().filter(|mask| mask.iter().any(|m| m != 0)) else { continue };
        let line = json!({"messages": case["messages"]});
        let (ids, counted) = encoded(&template, &line, LossOn::Answers);
        assert_eq!(json!(ids), case["ids"], "{name}");
        let expected: Vec<bool> = mask.iter().map(|m| m == 1).collect();
        assert_eq!(counted, expected, "{name}");
        compared += 1;
    }
    assert_eq!(compared, 4);
}

/// Templates without blocks: what an answer adds to the prompt for it, to the end of its turn.
#[test]
fn answers_are_found_by_comparing_prefixes() {
    for (name, between) in [("llama", "<|eot_id|>"), ("gemma", "<end_of_turn>\n")] {
        let (_, template, case) = cases().into_iter().find(|(found, ..)| found == name).unwrap();
        let (_dir, tokenizer) = with_template(&template);
        let tokenizer = tokenizer.unwrap();
        let rendered = tokenizer.template().unwrap().answers(&case["messages"], None).unwrap();
        assert_eq!(rendered.text, case["text"].as_str().unwrap());
        let answers: Vec<&str> = rendered.answers.iter().map(|answer| &rendered.text[answer.clone()]).collect();
        let expected = ["The Word.", "É中😀,\nit’s \"quoted\" \\ & <tag>."].map(|text| format!("{text}{between}"));
        assert_eq!(answers, expected, "{name}");
    }
}

#[test]
fn loss_on_all_counts_every_token_but_the_first() {
    let line = json!({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]});
    let (_, counted) = encoded("{% for m in messages %}{{ m.content }}{% endfor %}", &line, LossOn::All);
    assert_eq!(counted, [false, true]);
}

#[test]
fn what_a_template_does_not_show_is_an_error() {
    let line = json!({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]});
    let fails = |template: &str, line: &Value| {
        let dir = Temporary::new();
        let good = json!({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "good"}]});
        let file = dir.file("chat.jsonl", format!("\n{good}\n{line}\n"));
        let corpus = Corpus::open(&[file], &Format::Chat, 1000).unwrap();
        let (template_dir, tokenizer) = with_template(template);
        let recipe = Recipe { loss: LossOn::Answers, ..recipe(corpus, tokenizer.unwrap(), 8) };
        let error = Stream::start(recipe, None, Some(1)).unwrap().next(8).unwrap_err().to_string();
        error.replace(dir.0.to_str().unwrap(), "$DATA").replace(template_dir.0.to_str().unwrap(), "$DIR")
    };
    let plain = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}";
    let user = json!({"messages": [{"role": "user", "content": "a"}]});
    assert_eq!(
        fails(plain, &user),
        "$DATA/chat.jsonl: line 3: the conversation has no message with the role \"assistant\", so there is nothing to learn from it"
    );
    // The text says how long the conversation is: no beginning of it is one of a shorter conversation.
    let counting = format!("{{{{ messages | length }}}} {plain}");
    let long =
        json!({"messages": [line["messages"][0], line["messages"][1], line["messages"][0], line["messages"][1]]});
    assert_eq!(
        fails(&format!("{{% if messages | length > 2 %}}{counting}{{% else %}}{plain}{{% endif %}}"), &long),
        "$DATA/chat.jsonl: line 3: $DIR/chat_template.jinja: the chat template does not show where the answer of message 2 is: it has no {% generation %} blocks, and the text up to a message is not the beginning of the text with it; train on everything with --loss-on all"
    );
    assert_eq!(
        fails(
            "{% if messages[-1].content == 'b' %}{{ raise_exception('no b') }}{% endif %}{% generation %}x{% endgeneration %}",
            &line
        ),
        "$DATA/chat.jsonl: line 3: $DIR/chat_template.jinja: line 1: the chat template fails: no b"
    );
    assert_eq!(
        fails(
            "{% if messages[-1].content == 'b' %}{{ messages | nothing }}{% endif %}{% generation %}x{% endgeneration %}",
            &line
        ),
        "$DATA/chat.jsonl: line 3: $DIR/chat_template.jinja: line 1: the chat template fails: unknown filter: filter nothing is unknown"
    );
    let marked = json!({"messages": [{"role": "assistant", "content": "x\u{fdd0}"}]});
    assert_eq!(
        fails("{% generation %}{{ messages[0].content }}{% endgeneration %}", &marked),
        "$DATA/chat.jsonl: line 3: the conversation contains the character U+FDD0, which marks answers and is not a valid character of a text: remove it"
    );
    assert_eq!(
        fails_without_template(),
        "$DATA/chat.jsonl: line 1: the model has no chat template, neither chat_template.jinja nor chat_template in tokenizer_config.json: it does not accept conversations"
    );
}

fn fails_without_template() -> String {
    let dir = Temporary::new();
    let file = dir.file("chat.jsonl", json!({"messages": [{"role": "user", "content": "a"}]}).to_string());
    let corpus = Corpus::open(&[file], &Format::Chat, 1000).unwrap();
    let recipe = Recipe { tokenizer: Arc::new(support::tokenizer()), ..recipe(corpus, support::letters(), 8) };
    let error = Stream::start(recipe, None, Some(1)).unwrap().next(1).unwrap_err();
    error.to_string().replace(dir.0.to_str().unwrap(), "$DATA")
}
