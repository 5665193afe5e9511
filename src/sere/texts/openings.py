"""Short beginnings that a model continues, where nobody gives texts.

All were written for sere, under its license. They are of many kinds on purpose: a model's experts differ in
what they are for, and an expert that no token reaches cannot be measured.
"""

OPENINGS = (
    # Prose and questions in English
    "The old bridge had carried carts for two hundred years before",
    "Dear colleagues, thank you for your patience while we",
    "In this chapter we ask why metals conduct heat, and",
    "She put the letter back into its envelope and",
    "The committee met on Tuesday to decide whether the harbor",
    "Once there was a fox who could not",
    "Explain to a ten-year-old how a refrigerator works.",
    "Write a short review of a small restaurant by the sea.",
    "What are the main differences between a virus and a bacterium?",
    "Summarize the arguments for and against a shorter working week.",
    "Give me a recipe for a soup with lentils and carrots.",
    "List five ways to save water in a household.",
    # Knowledge
    "Photosynthesis is the process by which",
    "The capital of Australia is",
    "In law, a contract is void if",
    "The patient, a 54-year-old woman, was admitted with",
    "Between 1850 and 1900 the population of the city",
    "An enzyme lowers the activation energy of",
    # Arithmetic and mathematics
    "17 * 24 = ",
    "3 + 4 = 7, 7 + 8 = 15, 15 + 16 = ",
    "Question: A train travels 180 km in 2.5 hours. What is its average speed?\nAnswer:",
    "Let f(x) = x^3 - 3x. The derivative is",
    "Proof. Suppose that n is even. Then",
    "Solve for x: 5x - 7 = 3x + 9.",
    # Code and data
    "def is_prime(n):\n    ",
    "#include <stdio.h>\n\nint main(void) {\n",
    "SELECT name, COUNT(*) FROM orders\nWHERE",
    "function debounce(callback, delay) {\n",
    "Write a Python function that merges two sorted lists.",
    '{"id": 1, "name": "Lamp", "tags": [',
    "<!DOCTYPE html>\n<html>\n<head>\n",
    "#!/bin/sh\nset -e\nfor file in",
    "| year | rainfall (mm) |\n|---|---|\n| 2001 |",
    "Traceback (most recent call last):\n",
    # Other languages
    "Der Zug nach Hamburg hatte Verspätung, weil",
    "Erkläre den Unterschied zwischen Wetter und Klima.",
    "Le marché du village se tient chaque samedi et",
    "Quels sont les avantages du vélo en ville ?",
    "La casa de mi abuela tenía un patio donde",
    "Escribe un correo breve para pedir una cita con el médico.",
    "Il treno arrivò in stazione quando",
    "O rio atravessa a cidade e, na primavera,",
    "Зимой в деревне рано темнеет, и",
    "Объясни, почему небо голубое.",
    "从前有一个小村庄，",
    "请用三句话介绍一下太阳能。",
    "春になると、この町では",
    "日本語で自己紹介を書いてください。",
    "오늘 아침에 시장에 가서",
    "في الصباح الباكر خرج الصياد إلى",
    "सुबह होते ही गाँव के लोग",
    "Sabah erkenden pazara gittim ve",
)
"""Texts that break off, and questions."""
