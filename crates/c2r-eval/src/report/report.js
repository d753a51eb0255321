// Without this the page says the same: it only leads the eye to the chosen number and closes a panel behind a link.
document.addEventListener("click", (event) => {
  const cell = event.target.closest("button.cell");
  if (cell) {
    const panel = document.getElementById(cell.getAttribute("popovertarget"));
    for (const row of panel.querySelectorAll("tr[data-column]")) {
      const here = row.dataset.column === cell.dataset.column;
      row.classList.toggle("here", here);
      if (here) requestAnimationFrame(() => row.scrollIntoView({ block: "nearest" }));
    }
  }
  const link = event.target.closest(".panel a");
  if (link) {
    link.closest(".panel").hidePopover();
    document.getElementById(link.hash.slice(1)).open = true;
  }
});
