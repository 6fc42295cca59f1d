// The theme lets the keyboard reach every box that scrolls. But it measures the boxes when the page
// loads or its window changes, and what is folded then has no width. So let it measure after a click,
// which is also what a key on a fold comes to.
document.addEventListener("click", () => window.dispatchEvent(new Event("resize")));
