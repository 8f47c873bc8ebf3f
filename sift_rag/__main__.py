"""`python -m sift_rag` is the command sift-rag."""

from sift_rag.cli import main

if __name__ == "__main__":
    main()
