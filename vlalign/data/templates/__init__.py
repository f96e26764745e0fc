"""What rerankers are asked, by model family: words with places for an instruction, a query and a document."""
