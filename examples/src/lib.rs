//! Programs to start from: `quickstart` shards a burn module, `train_text` is the main job.
