"""The trainer: batches, the loop for one student or many, checkpoints, and run directories. It knows no teacher."""
